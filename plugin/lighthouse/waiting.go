package lighthouse

import (
	"sync/atomic"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
)

// Each packet has a goroutine of its own, and all that came by one UDP socket wait for each other where they write their replies to it. With
// more queries than the socket takes replies nothing bounds them: 250,000 wait after a minute of ten times the knee, with 1.6 GB
// of memory, and at a million Go ends the process. So of those that wait, the latest goes without its reply, like a query that finds
// the socket full. Replies of other plugins and of the server itself pass here too; where the Corefile has the plugin *shed*,
// which keeps the latest reply and not the earliest, this stays out of its way.

// maxWaiting is how many wait for one socket: some 40 MB of stacks, and 10 to 20 ms of replies.
const maxWaiting = 4096

// boundWaiting makes the writers of one UDP socket.
func boundWaiting(s *dnsserver.Server) dns.DecorateWriter {
	return (&socket{drop: repliesDropped.WithLabelValues(s.Address()).Inc}).writer
}

// socket is what the writers of one UDP socket share.
type socket struct {
	waiting atomic.Int32
	drop    func() // counts one
}

func (s *socket) writer(w dns.Writer) dns.Writer { return &socketWriter{w, s} }

type socketWriter struct {
	dns.Writer
	socket *socket
}

// Write writes the reply, unless too many wait already. To be dropped is no error: it would only be answered with another reply.
func (w *socketWriter) Write(reply []byte) (int, error) {
	defer w.socket.waiting.Add(-1)
	if w.socket.waiting.Add(1) > maxWaiting {
		w.socket.drop()
		return len(reply), nil
	}
	return w.Writer.Write(reply)
}
