// Package nodeprobe is how a node finds out whether packets reach a gateway of its cluster, and what that gateway can do
// with them: small authenticated UDP questions and answers over the very path that traffic takes. No API server is in
// between, so a dead gateway, cable or path is known of within a fraction of a second.
//
//	question, 92 to 1200 bytes                           answer, never longer than its question
//	+------+---------------+----------+----------+-----+ +------+-------+--------------------------------------+
//	| FNq1 | public key of | sequence | sealed:  | MAC | | FNa1 | nonce | sealed: sequence, version, flags and |
//	|  4   | the asker, 32 |    8     | version, | 16  | |  4   |  24   | cables, 25 bytes + 6 each; tag 16    |
//	|      |               |          | room; 16 |     | +------+-------+--------------------------------------+
//	+------+---------------+----------+----------+-----+
//
// Who may ask: whoever knows the gateway's public key, which its Endpoint tells this cluster. The MAC is keyed by it, so a
// stranger meets silence and costs one hash. Asker and gateway then share a secret (X25519 of a key that the asker's
// process makes for itself, and of the gateway's own), which seals both ways; no two pairs have the same one, and nothing
// is configured. A question counts once: the sequence rises. An answer bears the sequence of its question.
//
// The gateway's view has a version: who it is that speaks (the start of its process) and a count. An asker says which it
// has; only where that is another does the answer hold the list of cables, and only as far as the question was long: an
// asker that needs it fills its next question up. So nobody can use a gateway to send more than they send it. When the
// view changes, the gateway tells it at once to those who have asked lately.
package nodeprobe

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// DefaultPort (UDP) of gateways for questions; the next one after those of the debug pages and of the probes in cables.
const DefaultPort = 9474

// View is what a gateway knows of itself.
type View struct {
	// Draining: it is about to go; use another one.
	Draining bool
	Cables   []Cable
}

// Cable from the gateway to an Endpoint of another cluster.
type Cable struct {
	Endpoint, ClusterID string
	// Up: it carries packets, and should. Draining: it carries packets, and its other end wants no more.
	Up, Draining bool
}

// Seen is a gateway's view as an asker has it.
type Seen struct {
	Draining bool
	// partial: more cables carry packets than an answer can hold.
	partial bool
	tags    map[tag]bool
}

// Up says whether the gateway's cable to an Endpoint is up.
func (s *Seen) Up(endpoint string) bool { return s.partial || s.tags[tagOf(endpoint)] }

// CableDraining says whether the gateway's cable to an Endpoint carries packets, and its other end wants no more.
func (s *Seen) CableDraining(endpoint string) bool { return s.tags[drainingTag(endpoint)] }

// Equal: they say the same.
func (s *Seen) Equal(other *Seen) bool {
	if s == nil || other == nil {
		return s == other
	}
	if s.Draining != other.Draining || s.partial != other.partial || len(s.tags) != len(other.tags) {
		return false
	}
	for t := range s.tags {
		if !other.tags[t] {
			return false
		}
	}
	return true
}

// SeenOf is a view as every asker has it, sooner or later.
func SeenOf(v View) *Seen {
	tags, partial := v.tags()
	s := &Seen{Draining: v.Draining, partial: partial, tags: map[tag]bool{}}
	for _, t := range tags {
		s.tags[t] = true
	}
	return s
}

const (
	magicQuestion = "FNq1"
	magicAnswer   = "FNa1"
	keySize       = 32
	macSize       = 16
	headSize      = len(magicQuestion) + keySize + 8
	minQuestion   = headSize + versionSize + chacha20poly1305.Overhead + macSize
	maxPacket     = 1200 // what the smallest IPv6 path takes, with room for one more tunnel
	versionSize   = 16
	answerHead    = len(magicAnswer) + chacha20poly1305.NonceSizeX
	answerFixed   = 8 + versionSize + 1
	minAnswer     = answerHead + answerFixed + chacha20poly1305.Overhead
	// maxTags cables fit into the longest answer. Where more carry packets the answer says so, and all count as up as long as
	// the gateway answers at all.
	maxTags = (maxPacket - minAnswer) / tagSize
)

const (
	flagDraining = 1 << iota
	flagList     // the list of cables is here
	flagPartial  // there are more than it can hold
)

// tag stands for the name of an Endpoint: 48 bits of a hash. Among two hundred of a clusterset two have the same one in
// one of 14 thousand million.
type tag [tagSize]byte

const tagSize = 6

func tagOf(endpoint string) tag {
	sum := sha256.Sum256([]byte("fastnet node probe endpoint " + endpoint))
	return tag(sum[:tagSize])
}

// drainingTag stands for an Endpoint whose cable is draining: no name has a space.
func drainingTag(endpoint string) tag { return tagOf("draining " + endpoint) }

func (v View) tags() (tags []tag, partial bool) {
	for _, c := range v.Cables {
		switch {
		case c.Up:
			tags = append(tags, tagOf(c.Endpoint))
		case c.Draining:
			tags = append(tags, drainingTag(c.Endpoint))
		}
	}
	if len(tags) > maxTags {
		return tags[:maxTags], true
	}
	return tags, false
}

// version of a view: newer is greater within one process of the gateway.
type version struct{ epoch, count uint64 }

func (v version) append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, v.epoch), v.count)
}

func readVersion(b []byte) version {
	return version{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// macKey of questions to a gateway.
func macKey(gateway []byte) []byte {
	sum := sha256.Sum256(append([]byte("fastnet node probe mac 1 "), gateway...))
	return sum[:]
}

func mac(key, packet []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(packet)
	return h.Sum(nil)[:macSize]
}

// secrets seal what the two say to each other.
type secrets struct{ question, answer cipher.AEAD }

func agree(own *ecdh.PrivateKey, other *ecdh.PublicKey, asker, gateway []byte) (secrets, error) {
	shared, err := own.ECDH(other)
	if err != nil {
		return secrets{}, err // all zero: the other's key is of low order
	}
	keys, err := hkdf.Key(sha256.New, shared, slices.Concat(asker, gateway), "fastnet node probe 1", 2*keySize)
	if err != nil {
		return secrets{}, err
	}
	question, err := chacha20poly1305.New(keys[:keySize])
	if err != nil {
		return secrets{}, err
	}
	// Answers have random nonces of 24 bytes: a gateway that has forgotten an asker (there is a bound to how many it
	// remembers) cannot know which ones it has used.
	answer, err := chacha20poly1305.NewX(keys[keySize:])
	return secrets{question: question, answer: answer}, err
}

// questionNonce: every question of a pair has a sequence of its own.
func questionNonce(sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, chacha20poly1305.NonceSize-8, chacha20poly1305.NonceSize), sequence)
}

// question is what an asker says.
type question struct {
	asker    [keySize]byte
	sequence uint64
	have     version
	// room is the length of the packet, and so of the longest answer.
	room int
}

func (q question) seal(s secrets, macKey []byte) []byte {
	packet := make([]byte, 0, max(q.room, minQuestion))
	packet = append(packet, magicQuestion...)
	packet = append(packet, q.asker[:]...)
	packet = binary.BigEndian.AppendUint64(packet, q.sequence)
	plain := append(q.have.append(nil), make([]byte, max(q.room, minQuestion)-minQuestion)...)
	packet = s.question.Seal(packet, questionNonce(q.sequence), plain, packet)
	return append(packet, mac(macKey, packet)...)
}

var errNoQuestion = errors.New("no question for this gateway")

// readQuestion checks form and MAC; what is sealed needs the secrets.
func readQuestion(packet, macKey []byte) (question, error) {
	if len(packet) < minQuestion || len(packet) > maxPacket || string(packet[:len(magicQuestion)]) != magicQuestion {
		return question{}, errNoQuestion
	}
	body, sum := packet[:len(packet)-macSize], packet[len(packet)-macSize:]
	if !hmac.Equal(sum, mac(macKey, body)) {
		return question{}, errNoQuestion
	}
	return question{asker: [keySize]byte(packet[len(magicQuestion):]), sequence: binary.BigEndian.Uint64(packet[headSize-8:]), room: len(packet)}, nil
}

// open reads what is sealed in a question that readQuestion has taken from the packet.
func (q question) open(packet []byte, s secrets) (question, error) {
	plain, err := s.question.Open(nil, questionNonce(q.sequence), packet[headSize:len(packet)-macSize], packet[:headSize])
	if err != nil {
		return q, fmt.Errorf("question: %w", err)
	}
	q.have = readVersion(plain)
	return q, nil
}

// answer is what a gateway says.
type answer struct {
	sequence uint64 // of the question, 0 where there was none
	version  version
	flags    byte
	up       []tag
}

func (a answer) seal(s secrets, asker, nonce []byte) []byte {
	packet := append(append(make([]byte, 0, minAnswer+len(a.up)*tagSize), magicAnswer...), nonce...)
	plain := binary.BigEndian.AppendUint64(nil, a.sequence)
	plain = append(a.version.append(plain), a.flags)
	for _, t := range a.up {
		plain = append(plain, t[:]...)
	}
	return s.answer.Seal(packet, nonce, plain, append([]byte(magicAnswer), asker...))
}

func openAnswer(packet []byte, s secrets, asker []byte) (answer, error) {
	if len(packet) < minAnswer || len(packet) > maxPacket || string(packet[:len(magicAnswer)]) != magicAnswer {
		return answer{}, errors.New("no answer")
	}
	plain, err := s.answer.Open(nil, packet[len(magicAnswer):answerHead], packet[answerHead:], append([]byte(magicAnswer), asker...))
	if err != nil {
		return answer{}, err
	}
	a := answer{sequence: binary.BigEndian.Uint64(plain), version: readVersion(plain[8:]), flags: plain[answerFixed-1]}
	for rest := plain[answerFixed:]; len(rest) >= tagSize; rest = rest[tagSize:] {
		a.up = append(a.up, tag(rest))
	}
	return a, nil
}
