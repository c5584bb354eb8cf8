package ground

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Traffic is what a process has exchanged with an API server, by connection, as the kernel counts it: bytes within TCP, those of
// TLS and HTTP/2 included.
type Traffic map[uint32]Bytes

// Bytes of one connection, as its client sees it.
type Bytes struct{ Sent, Received uint64 }

// Traffic reads the counters of a process's connections to this cluster's API server.
func (c *Cluster) Traffic(of *Process) (Traffic, error) {
	port, err := strconv.Atoi(c.Port())
	if err != nil {
		return nil, err
	}
	own := map[uint32]bool{}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", of.command.Process.Pid))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		var inode uint32
		if target, err := os.Readlink(file); err == nil {
			if n, _ := fmt.Sscanf(target, "socket:[%d]", &inode); n == 1 {
				own[inode] = true
			}
		}
	}
	sockets, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("the kernel's counters of connections: %w", err)
	}
	all := Traffic{}
	for _, s := range sockets {
		if s.InetDiagMsg != nil && s.TCPInfo != nil && own[s.InetDiagMsg.INode] && s.InetDiagMsg.ID.DestinationPort == uint16(port) {
			all[s.InetDiagMsg.INode] = Bytes{Sent: s.TCPInfo.Bytes_acked, Received: s.TCPInfo.Bytes_received}
		}
	}
	return all, nil
}

// Since sums up what came to the counters after they were read before. It fails where a connection has ended since: nobody
// knows what it carried.
func (t Traffic) Since(before Traffic) (Bytes, error) {
	var sum Bytes
	for inode, then := range before {
		now, there := t[inode]
		if !there {
			return Bytes{}, fmt.Errorf("a connection has ended meanwhile")
		}
		sum.Sent += now.Sent - then.Sent
		sum.Received += now.Received - then.Received
	}
	for inode, now := range t {
		if _, old := before[inode]; !old {
			sum.Sent += now.Sent
			sum.Received += now.Received
		}
	}
	return sum, nil
}
