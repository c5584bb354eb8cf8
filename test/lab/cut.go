package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cut breaks the network until [Lab.Heal] is called with the same words:
//
//	c1/worker1         the node: whatever it sends or should get is lost in silence, as behind a dead switch
//	c1/worker1:eth0    the link of the node: it goes down and the node's kernel sees that, as with a pulled cable
//	c1 c2              the pair of clusters: the WAN drops in silence what their nodes send to each other
func (l *Lab) Cut(ctx context.Context, targets ...string) error {
	return l.cut(ctx, targets, true)
}

// Heal undoes [Lab.Cut]. Healing what is whole does nothing.
func (l *Lab) Heal(ctx context.Context, targets ...string) error {
	return l.cut(ctx, targets, false)
}

func (l *Lab) cut(ctx context.Context, targets []string, cut bool) error {
	if len(targets) == 2 && !strings.Contains(targets[0]+targets[1], "/") {
		return l.cutPair(targets[0], targets[1], cut)
	}
	if len(targets) != 1 {
		return errors.New("give one node (c1/worker1), one link (c1/worker1:eth0) or two clusters (c1 c2)")
	}
	parsed, err := l.parseTarget(targets[0])
	if err != nil {
		return err
	}
	switch parsed.detail {
	case "":
		return l.cutPort(ctx, parsed.node, cut)
	case nodeLink:
		return l.cutLink(parsed.node, cut)
	default:
		return fmt.Errorf("no link %q: a node's one link to the others is %s", parsed.detail, nodeLink)
	}
}

// Port states of a Linux bridge (linux/if_bridge.h): a disabled port passes nothing in either direction while the
// link's carrier stays.
const (
	portDisabled   = "0"
	portForwarding = "3"
)

func (l *Lab) cutPort(ctx context.Context, n *Node, cut bool) error {
	state := portForwarding
	if cut {
		state = portDisabled
	}
	out, err := l.WAN().Command(ctx, "bridge", "link", "set", "dev", n.port(), "state", state).CombinedOutput()
	if err != nil {
		return fmt.Errorf("bridge port %s: %w: %s", n.port(), err, lastLine(out))
	}
	return nil
}

// cutLink takes down the WAN's end, so that the node sees its carrier go.
func (l *Lab) cutLink(n *Node, cut bool) error {
	wan, err := handle(wanSpace)
	if err != nil {
		return err
	}
	defer wan.Close()
	link, err := wan.LinkByName(n.port())
	if err != nil {
		return err
	}
	if cut {
		return wan.LinkSetDown(link)
	}
	return wan.LinkSetUp(link)
}

// pairRules are routing rules of the WAN that drop what one cluster's nodes send to the other's, both ways.
func pairRules(a, b *Cluster) []*netlink.Rule {
	var rules []*netlink.Rule
	for i := range a.underlay {
		for _, way := range [][2]*Cluster{{a, b}, {b, a}} {
			rule := netlink.NewRule()
			rule.Priority = 100 // before the main table's 32766
			rule.Family = netlink.FAMILY_V4
			if a.underlay[i].Addr().Is6() {
				rule.Family = netlink.FAMILY_V6
			}
			rule.Src, rule.Dst = ipNet(way[0].underlay[i]), ipNet(way[1].underlay[i])
			rule.Type = unix.RTN_BLACKHOLE
			rules = append(rules, rule)
		}
	}
	return rules
}

func (l *Lab) cutPair(a, b string, cut bool) error {
	first, second := l.Cluster(a), l.Cluster(b)
	if first == nil || second == nil || first == second {
		return fmt.Errorf("%s and %s are no two clusters: there are %s", a, b, strings.Join(l.config.clusterNames(), ", "))
	}
	wan, err := handle(wanSpace)
	if err != nil {
		return err
	}
	defer wan.Close()
	var errs []error
	for _, rule := range pairRules(first, second) {
		if cut {
			if err := wan.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
				errs = append(errs, fmt.Errorf("add rule: %w", err))
			}
			continue
		}
		if err := wan.RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove rule: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Pause stops a node, all its processes with those in its pods (c1/worker1), or one of its programs
// (c1/worker1:kubelet), as a machine that hangs, until [Lab.Resume]. The node's kernel goes on: it still routes packets.
func (l *Lab) Pause(ctx context.Context, target string) error {
	return l.pause(ctx, target, unix.SIGSTOP)
}

// Resume undoes [Lab.Pause]. Resuming what runs does nothing.
func (l *Lab) Resume(ctx context.Context, target string) error {
	return l.pause(ctx, target, unix.SIGCONT)
}

func (l *Lab) pause(ctx context.Context, text string, signal unix.Signal) error {
	parsed, err := l.parseTarget(text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// A process that is not stopped yet may fork, so this looks again until nothing is left to do.
	return poll(ctx, pollInterval/10, func() (bool, error) {
		all, err := parsed.node.processes()
		if err != nil {
			return false, err
		}
		done, named := true, parsed.detail == ""
		for _, p := range all {
			if parsed.detail != "" && programName(p) != parsed.detail {
				continue
			}
			named = true
			if stopped := p.state == 'T'; stopped == (signal == unix.SIGSTOP) {
				continue
			}
			done = false
			if err := p.signal(signal); err != nil {
				return false, err
			}
		}
		if !named {
			return false, fmt.Errorf("no process %q on %s: it may be etcd, kube-apiserver, kubelet, containerd, kube-proxy, "+
				"or any program of a pod", parsed.detail, parsed.node.name)
		}
		return done, nil
	})
}

// programName is the last part of argv[0].
func programName(p processInfo) string {
	name := p.args[0]
	return name[strings.LastIndexByte(name, '/')+1:]
}

// processes lists everything that runs on the node, pods too, the init first: they are in its control groups.
func (n *Node) processes() ([]processInfo, error) {
	return groupProcesses(n.name)
}
