package lighthouse

import (
	"hash/maphash"
	"iter"
)

// table is a persistent map from names to values: with and without give a new table that shares all but one path with
// the old one. It is a tree of fixed depth, not a trie that grows: at 250,000 names a bucket holds four, and a change
// copies the root, one page and one bucket, about 8 KiB, whatever the size of the table.
type table[V any] struct {
	seed maphash.Seed
	root *[256]*page[V]
}

type page[V any] [256][]entry[V]

type entry[V any] struct {
	key   string
	value V
}

func newTable[V any]() table[V] {
	return table[V]{seed: maphash.MakeSeed(), root: new([256]*page[V])}
}

func (t table[V]) get(key string) (value V, found bool) {
	hash := maphash.String(t.seed, key)
	p := t.root[byte(hash)]
	if p == nil {
		return value, false
	}
	for _, e := range p[byte(hash>>8)] {
		if e.key == key {
			return e.value, true
		}
	}
	return value, false
}

// with gives a table in which key has the value.
func (t table[V]) with(key string, value V) table[V] {
	t, bucket, at := t.copyPath(key)
	if at < 0 {
		*bucket = append(*bucket, entry[V]{key, value})
	} else {
		(*bucket)[at].value = value
	}
	return t
}

// without gives a table that does not hold key.
func (t table[V]) without(key string) table[V] {
	if _, found := t.get(key); !found {
		return t
	}
	t, bucket, at := t.copyPath(key)
	last := len(*bucket) - 1
	(*bucket)[at] = (*bucket)[last]
	(*bucket)[last] = entry[V]{}
	*bucket = (*bucket)[:last]
	return t
}

// copyPath copies what lies between the root and key's bucket, and the bucket, and tells key's place in it, -1 for none.
func (t table[V]) copyPath(key string) (_ table[V], bucket *[]entry[V], at int) {
	hash := maphash.String(t.seed, key)
	root := *t.root
	var p page[V]
	if old := root[byte(hash)]; old != nil {
		p = *old
	}
	old := p[byte(hash>>8)]
	copied := make([]entry[V], len(old), len(old)+1)
	copy(copied, old)
	p[byte(hash>>8)] = copied
	root[byte(hash)] = &p
	t.root = &root
	for i := range copied {
		if copied[i].key == key {
			return t, &p[byte(hash>>8)], i
		}
	}
	return t, &p[byte(hash>>8)], -1
}

// all gives every name and its value, in no order.
func (t table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, p := range t.root {
			if p == nil {
				continue
			}
			for _, bucket := range p {
				for _, e := range bucket {
					if !yield(e.key, e.value) {
						return
					}
				}
			}
		}
	}
}
