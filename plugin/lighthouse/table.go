package lighthouse

import (
	"hash/maphash"
	"iter"
)

// table is a persistent map from names to values: with and without give a new table that shares all but one path with
// the old one. It is a tree of fixed depth, not a trie that grows: at 250,000 names a chain holds four, and a change
// copies the root, one page and one chain, somewhat more than 4 KiB, whatever the size of the table.
type table[V any] struct {
	seed maphash.Seed
	root *[256]*page[V]
	own  *[256]bool // between edit and done, the pages that no other table has
}

type page[V any] [256]*link[V]

// link is a name in a chain of those that share a place. Fetching memory is most of what a lookup costs, and what lies side by side
// is fetched at once: so the value lies in the link, and where the name is short, so do its letters.
type link[V any] struct {
	next  *link[V]
	key   string
	room  [32]byte
	value V
}

func newLink[V any](key string, value *V, next *link[V]) *link[V] {
	l := &link[V]{key: key, value: *value, next: next}
	if len(key) <= len(l.room) {
		copy(l.room[:], key)
	}
	return l
}

// has tells whether key is the link's.
func (l *link[V]) has(key string) bool {
	if len(key) != len(l.key) {
		return false
	}
	if len(key) <= len(l.room) {
		return string(l.room[:len(key)]) == key
	}
	return l.key == key
}

func newTable[V any]() table[V] {
	return table[V]{seed: maphash.MakeSeed(), root: new([256]*page[V])}
}

// get gives the value of a name, nil where there is none. It must not be changed.
func (t table[V]) get(key string) *V {
	hash := maphash.String(t.seed, key)
	if p := t.root[byte(hash)]; p != nil {
		for l := p[byte(hash>>8)]; l != nil; l = l.next {
			if l.has(key) {
				return &l.value
			}
		}
	}
	return nil
}

// with gives a table in which key has a copy of the value.
func (t table[V]) with(key string, value *V) table[V] {
	t, chain := t.copyPath(key)
	*chain = newLink(key, value, (*chain).without(key))
	return t
}

// without gives a table that does not hold key.
func (t table[V]) without(key string) table[V] {
	if t.get(key) == nil {
		return t
	}
	t, chain := t.copyPath(key)
	*chain = (*chain).without(key)
	return t
}

// without gives a chain that does not hold key: what stands before it is copied, what stands behind it shared.
func (l *link[V]) without(key string) *link[V] {
	switch {
	case l == nil:
		return nil
	case l.has(key):
		return l.next
	}
	rest := l.next.without(key)
	if rest == l.next {
		return l
	}
	return newLink(l.key, &l.value, rest)
}

// edit gives a table for many changes in a row, which cost no more than what they touch: a page is copied once. Until done, none of
// the tables that come of it may be kept but the last.
func (t table[V]) edit() table[V] {
	root := *t.root
	t.root, t.own = &root, new([256]bool)
	return t
}

// done ends an edit.
func (t table[V]) done() table[V] {
	t.own = nil
	return t
}

// copyPath copies what lies between the root and key's chain, as far as others have it, and gives the place of the chain.
func (t table[V]) copyPath(key string) (_ table[V], chain **link[V]) {
	if t.own == nil {
		edited, chain := t.edit().copyPath(key)
		return edited.done(), chain
	}
	hash := maphash.String(t.seed, key)
	at := byte(hash)
	if !t.own[at] {
		var p page[V]
		if old := t.root[at]; old != nil {
			p = *old
		}
		t.root[at], t.own[at] = &p, true
	}
	return t, &t.root[at][byte(hash>>8)]
}

// all gives every name and its value, in no order.
func (t table[V]) all() iter.Seq2[string, *V] {
	return func(yield func(string, *V) bool) {
		for _, p := range t.root {
			if p == nil {
				continue
			}
			for _, l := range p {
				for ; l != nil; l = l.next {
					if !yield(l.key, &l.value) {
						return
					}
				}
			}
		}
	}
}
