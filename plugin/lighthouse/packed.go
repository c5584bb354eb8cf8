package lighthouse

import (
	"encoding/binary"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"

	"github.com/coredns/coredns/plugin/pkg/edns"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// Most of what a reply costs in CoreDNS is spent on the way from a message to bytes: records are made one by one, measured
// twice, packed through a map of names, and all of it in calls so deep that the goroutine's new stack is grown, by copying,
// once or twice for each query. Where nothing stands between this plugin and the server, the bytes are written straight from
// the zone instead. A reply is the same either way, but for names, which are always compressed here.

// packed tells whether bytes may be written to w, for that query, and if so where to, how large a reply may be, and the
// query's OPT record, nil without one.
//
// They may where the writer is the server's own. A plugin that reads or changes replies, such as cache, loadbalance,
// prometheus or log, puts a writer of its own before it, and gets a message; shed puts one behind it.
func packed(w dns.ResponseWriter, query *dns.Msg) (to io.Writer, size int, opt *dns.OPT, ok bool) {
	scrub, ok := w.(*request.ScrubWriter)
	if !ok {
		return nil, 0, nil, false
	}
	if to = writerBehind(scrub.ResponseWriter); to == nil || query.Opcode != dns.OpcodeQuery || len(query.Question) != 1 {
		return nil, 0, nil, false
	}
	switch len(query.Extra) {
	case 0:
	case 1:
		// With options, the server decides which of them are returned. Another record would be a signature.
		if opt, ok = query.Extra[0].(*dns.OPT); !ok || len(opt.Option) > 0 {
			return nil, 0, nil, false
		}
	default:
		return nil, 0, nil, false
	}
	if strings.IndexByte(query.Question[0].Name, '\\') >= 0 {
		return nil, 0, nil, false // a name whose text is not its bytes
	}
	state := request.Request{W: scrub.ResponseWriter}
	advertised := uint16(0)
	if opt != nil {
		advertised = opt.UDPSize()
	}
	return to, int(edns.Size(state.Proto(), advertised)), opt, true
}

// writerBehind is where the writer of dns.Server, to UDP, TCP or TLS, sends the bytes of its messages; nil where w is another writer, or where
// one that is not ours stands behind it, as that of the plugin *shed*, which only messages go through. The type has no name outside its package.
func writerBehind(w dns.ResponseWriter) io.Writer {
	v := reflect.ValueOf(w)
	known := serverWriter.Load()
	if known == nil || known.pointer != v.Type() {
		if known = serverWriterOf(v.Type()); known == nil {
			return nil
		}
		serverWriter.Store(known)
	}
	behind := v.Elem().Field(known.behind)
	switch {
	case behind.Kind() != reflect.Interface || behind.Elem().Kind() != reflect.Pointer:
		return nil
	case behind.Elem().UnsafePointer() == v.UnsafePointer():
		return w
	case behind.Elem().Type() == reflect.TypeFor[*socketWriter]():
		return (*socketWriter)(behind.Elem().UnsafePointer())
	}
	return nil
}

// serverWriter is what was found out about the one type of writer that there is.
var serverWriter atomic.Pointer[serverWriterType]

// serverWriterType is a pointer to the writer of dns.Server, whose field of that index is what its messages are written to.
type serverWriterType struct {
	pointer reflect.Type
	behind  int
}

func serverWriterOf(pointer reflect.Type) *serverWriterType {
	if pointer.Kind() != reflect.Pointer || pointer.Elem().Name() != "response" || pointer.Elem().PkgPath() != "github.com/miekg/dns" {
		return nil
	}
	behind, found := pointer.Elem().FieldByName("writer")
	if !found {
		return nil
	}
	return &serverWriterType{pointer, behind.Index[0]}
}

const (
	headerLength = 12
	optLength    = 11
	// A pointer of two bytes stands for a name that begins at its offset, which has 14 bits (RFC 1035, 4.1.4).
	pointerMark = 0xC000
	maxPointer  = 0x3FFF

	flagResponse         = 1 << 15
	flagAuthoritative    = 1 << 10
	flagTruncated        = 1 << 9
	flagRecursionDesired = 1 << 8
	flagCheckingDisabled = 1 << 4
)

// pack appends the reply to query to out, which is empty: a message of at most size bytes, records as far as they fit, and
// TC where not all did.
func (p *reply) pack(out []byte, query *dns.Msg, r *content, size int, opt *dns.OPT) []byte {
	limit := size
	if opt != nil {
		limit -= optLength
	}
	flags := uint16(flagResponse|flagAuthoritative) | uint16(p.rcode)
	if query.RecursionDesired {
		flags |= flagRecursionDesired
	}
	if query.CheckingDisabled {
		flags |= flagCheckingDisabled
	}
	out = append(out, make([]byte, headerLength)...)
	out = appendName(out, p.question.Name)
	nameEnd := len(out)
	out = binary.BigEndian.AppendUint16(out, p.question.Qtype)
	out = binary.BigEndian.AppendUint16(out, p.question.Qclass)

	var answers, authorities, extras int
	whole := true
	switch {
	case len(r.services) > 0:
		out, answers, extras, whole = p.packServices(out, r, limit)
	case len(r.addresses) > 0:
		for _, addr := range r.addresses {
			if len(out)+2+10+addr.BitLen()/8 > limit {
				whole = false
				break
			}
			out = p.appendAddress(binary.BigEndian.AppendUint16(out, pointerMark|headerLength), addr)
			answers++
		}
	default:
		before := len(out)
		if out = p.appendSOA(out, nameEnd); len(out) > limit {
			out, whole = out[:before], false
		} else {
			authorities++
		}
	}
	if opt != nil {
		out = append(out, 0)
		out = binary.BigEndian.AppendUint16(out, dns.TypeOPT)
		out = binary.BigEndian.AppendUint16(out, opt.UDPSize())
		out = binary.BigEndian.AppendUint32(out, opt.Hdr.Ttl&0xff00) // DO is kept; version and extended code are 0
		out = binary.BigEndian.AppendUint16(out, 0)
		extras++
	}
	if !whole {
		flags |= flagTruncated
	}
	for i, n := range [...]uint16{query.Id, flags, 1, uint16(answers), uint16(authorities), uint16(extras)} {
		binary.BigEndian.PutUint16(out[2*i:], n)
	}
	return out
}

// packServices appends SRV records and their glue, and tells how many of each there was room for. The names that the
// records point at are written out (RFC 2782: no compression), and the glue points there.
func (p *reply) packServices(out []byte, r *content, limit int) (_ []byte, answers, extras int, whole bool) {
	for i := range r.targets {
		r.targets[i].at = 0
	}
	for _, s := range r.services {
		t := &r.targets[s.target]
		before := len(out)
		out = binary.BigEndian.AppendUint16(out, pointerMark|headerLength)
		out = p.appendHeader(out, dns.TypeSRV, 0)
		out = binary.BigEndian.AppendUint16(out, 0)
		out = binary.BigEndian.AppendUint16(out, s.weight)
		out = binary.BigEndian.AppendUint16(out, s.number)
		at := len(out)
		out = t.appendWire(out, p.canonical)
		binary.BigEndian.PutUint16(out[at-8:], uint16(len(out)-at+6))
		if len(out) > limit {
			return out[:before], answers, 0, false
		}
		if t.at == 0 {
			t.at = at
		}
		answers++
	}
	glueless := len(out)
	for i := range r.targets {
		t := &r.targets[i]
		for _, addr := range t.addresses {
			before := len(out)
			if t.at <= maxPointer {
				out = binary.BigEndian.AppendUint16(out, pointerMark|uint16(t.at))
			} else {
				out = t.appendWire(out, p.canonical)
			}
			if out = p.appendAddress(out, addr); len(out) > limit {
				if limit >= dns.MaxMsgSize-optLength {
					// "A reply too large even for TCP loses its glue first."
					return out[:glueless], answers, 0, true
				}
				return out[:before], answers, extras, false
			}
			extras++
		}
	}
	return out, answers, extras, true
}

// appendHeader appends what stands between a record's owner and its data.
func (p *reply) appendHeader(out []byte, rrtype, length uint16) []byte {
	out = binary.BigEndian.AppendUint16(out, rrtype)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, p.ttl)
	return binary.BigEndian.AppendUint16(out, length)
}

// appendAddress appends what follows the owner of an A or AAAA record.
func (p *reply) appendAddress(out []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		bytes := addr.As4()
		return append(p.appendHeader(out, dns.TypeA, 4), bytes[:]...)
	}
	bytes := addr.As16()
	return append(p.appendHeader(out, dns.TypeAAAA, 16), bytes[:]...)
}

// appendSOA appends the zone's SOA record. Its owner is the end of the question's name, which ends before nameEnd, where
// the client wrote that as we do.
func (p *reply) appendSOA(out []byte, nameEnd int) []byte {
	length := 1
	if p.zone != "." {
		length = len(p.zone) + 1
	}
	at := nameEnd - length
	if name := p.question.Name; strings.HasSuffix(name, p.zone) {
		out = binary.BigEndian.AppendUint16(out, pointerMark|uint16(at))
	} else {
		at = len(out)
		out = appendName(out, p.zone)
	}
	zone := pointerMark | uint16(at)
	out = binary.BigEndian.AppendUint16(out, dns.TypeSOA)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, p.zoneTTL)
	lengthAt := len(out)
	out = append(out, 0, 0)
	for _, name := range [...]string{nsName, mboxName} {
		out = appendLabels(out, name)
		out = binary.BigEndian.AppendUint16(out, zone)
	}
	for _, n := range [...]uint32{p.serial, soaRefresh, soaRetry, soaExpire, p.zoneTTL} {
		out = binary.BigEndian.AppendUint32(out, n)
	}
	binary.BigEndian.PutUint16(out[lengthAt:], uint16(len(out)-lengthAt-2))
	return out
}

// appendWire appends the name that the target stands for, as it goes over the wire.
func (t *target) appendWire(out []byte, canonical string) []byte {
	if t.part != nil {
		if t.backend != nil {
			at := len(out)
			out = t.backend.appendName(append(out, 0))
			out[at] = byte(len(out) - at - 1)
		}
		out = appendLabels(out, t.part.cluster.id)
	}
	return appendName(out, canonical)
}

// appendName appends a fully qualified name without escapes as it goes over the wire.
func appendName(out []byte, name string) []byte {
	if name == "." {
		return append(out, 0)
	}
	return append(appendLabels(out, name), 0)
}

// appendLabels appends the labels of a name, with or without a dot at its end, but not the root.
func appendLabels(out []byte, name string) []byte {
	at := len(out)
	out = append(out, 0)
	for i := range len(name) {
		if name[i] != '.' {
			out = append(out, name[i])
			continue
		}
		out[at] = byte(len(out) - at - 1)
		if i+1 == len(name) {
			return out
		}
		at = len(out)
		out = append(out, 0)
	}
	out[at] = byte(len(out) - at - 1)
	return out
}
