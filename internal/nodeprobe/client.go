package nodeprobe

import (
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
)

// conversation is a node's side of one path to one gateway, without socket and clock. It has a key of its own, which
// lives as long as it does.
type conversation struct {
	public  [keySize]byte
	secrets secrets
	mac     []byte

	asked   uint64  // sequence of the last question
	from    uint64  // and of the one whose answer has said version
	version version // of what was seen
	seen    *Seen   // nil before the first list
	behind  bool    // the gateway has a view of another version
}

// newConversation with the gateway that has this public key (X25519).
func newConversation(gateway []byte) (*conversation, error) {
	other, err := ecdh.X25519().NewPublicKey(gateway)
	if err != nil {
		return nil, fmt.Errorf("public key of a gateway: %w", err)
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &conversation{public: [keySize]byte(own.PublicKey().Bytes()), mac: macKey(gateway)}
	c.secrets, err = agree(own, other, c.public[:], gateway)
	return c, err
}

// ask makes the next question. Sequences rise: none is used twice.
func (c *conversation) ask(sequence uint64) []byte {
	c.asked = sequence
	q := question{asker: c.public, sequence: sequence, room: minQuestion}
	if c.seen == nil || c.behind {
		q.room = maxPacket
	} else {
		q.have = c.version
	}
	return q.seal(c.secrets, c.mac)
}

// hear takes a packet: the sequence of the question that it answers, 0 for a word out of turn, and whether the view is
// another one now. Not ok is what says nothing to us: somebody else's, or a word from before.
func (c *conversation) hear(packet []byte) (sequence uint64, changed, ok bool) {
	a, err := openAnswer(packet, c.secrets, c.public[:])
	switch {
	case err != nil || a.sequence > c.asked:
		return 0, false, false
	case a.sequence == 0:
		// Only the answer to a question of ours can begin a new epoch: anybody can send an old word once more.
		if c.seen == nil || a.version.epoch != c.version.epoch || a.version.count <= c.version.count || a.flags&flagList == 0 {
			return 0, false, false
		}
	case a.sequence < c.from || a.version.epoch == c.version.epoch && a.version.count < c.version.count:
		return a.sequence, false, true // overtaken: an answer, but its view is old
	default:
		c.from = a.sequence
	}
	if a.flags&flagList == 0 {
		c.behind = a.version != c.version
		return a.sequence, false, true
	}
	seen := &Seen{Draining: a.flags&flagDraining != 0, partial: a.flags&flagPartial != 0, tags: map[tag]bool{}}
	for _, t := range a.up {
		seen.tags[t] = true
	}
	changed = !seen.Equal(c.seen)
	c.seen, c.version, c.behind = seen, a.version, false
	return a.sequence, changed, true
}
