//go:build e2e

package crash

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/test/soak/dnsserver"
)

// questions are asked of every cluster's DNS, about each telling.
var questions = []struct {
	service string
	qtype   uint16
}{{"web", dns.TypeA}, {"web", dns.TypeAAAA}, {"db", dns.TypeA}}

// serveDNS starts a CoreDNS with lighthouse for a cluster.
func (w *world) serveDNS(id, program string) (address string) {
	dir := w.t.TempDir()
	ip, port := dnsserver.Loopback(), dnsserver.FreePort(w.t)
	dnsserver.Write(w.t, dir, "Corefile", fmt.Sprintf("clusterset.local:%s {\n\tbind %s\n\terrors\n\tlighthouse {\n\t\tkubeconfig %s\n\t\tcluster_id %s\n\t}\n}\n",
		port, ip, w.clusters[id].kubeconfig, id))
	dnsserver.Start(w.t, dir, program)
	return net.JoinHostPort(ip, port)
}

// buildDNS builds our CoreDNS.
func (w *world) buildDNS() (program string) {
	program = filepath.Join(w.dir, "coredns")
	w.must(dnsserver.Build(w.ctx, program, "-s -w", "github.com/fastnet-io/fastnet/coredns-build"))
	return program
}

// asked is an answer: the addresses in it, or the rcode where there are none.
func asked(server, service, namespace string, qtype uint16) (addresses []string, none string, err error) {
	reply, err := dnsserver.Ask("udp", server, service+"."+namespace+".svc.clusterset.local.", qtype)
	if err != nil {
		return nil, "", err
	}
	for _, record := range reply.Answer {
		switch record := record.(type) {
		case *dns.A:
			addresses = append(addresses, record.A.String())
		case *dns.AAAA:
			addresses = append(addresses, record.AAAA.String())
		}
	}
	slices.Sort(addresses)
	none = dns.RcodeToString[reply.Rcode]
	if reply.Rcode == dns.RcodeSuccess {
		none = "NODATA"
	}
	return addresses, none, nil
}

// answers are what a cluster's DNS says of one telling, a line each.
func (w *world) answers(id, namespace string, called func([]string) string) (lines []string, err error) {
	for _, q := range questions {
		addresses, none, err := asked(w.clusters[id].dns, q.service, namespace, q.qtype)
		if err != nil {
			return nil, err
		}
		if len(addresses) > 0 {
			none = called(addresses)
		}
		lines = append(lines, fmt.Sprintf("answer to %s %s: %s", q.service, dns.TypeToString[q.qtype], none))
	}
	return lines, nil
}

// listen asks a cluster's DNS all the time about the telling that goes on, and complains of an address that comes into an answer though
// nobody offers it. One that was there may stay for a while.
func (w *world) listen(id string) {
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	w.t.Cleanup(func() { stop(); running.Wait() })
	running.Go(func() {
		before := map[string][]string{}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			w.mu.Lock()
			namespace := w.telling
			w.mu.Unlock()
			for _, q := range questions {
				if namespace == "" {
					break
				}
				name := fmt.Sprintf("%s.%s %s", q.service, namespace, dns.TypeToString[q.qtype])
				addresses, none, err := asked(w.clusters[id].dns, q.service, namespace, q.qtype)
				switch {
				case ctx.Err() != nil:
				case err != nil:
					w.t.Errorf("%s: %s is not answered: %v", id, name, err)
				case none == "SERVFAIL":
					w.t.Errorf("%s: %s is SERVFAIL", id, name)
				default:
					for _, address := range addresses {
						if !slices.Contains(before[name], address) {
							w.sawAnswer(ctx, id, namespace, q.service, q.qtype, address)
						}
					}
					before[name] = addresses
				}
			}
		}
	})
}

// sawAnswer takes that an address has come into an answer. A backend's must be offered; a clusterset IP must be some derived Service's, or the
// answer is gone in the next moment with its import, which goes before the Service does.
func (w *world) sawAnswer(ctx context.Context, id, namespace, service string, qtype uint16, address string) {
	w.mu.Lock()
	offered, known := w.offered[namespace][address]
	w.mu.Unlock()
	if offered && service != "web" {
		return
	}
	problem := fmt.Sprintf("nobody offers it (any more: %t)", known)
	for range 20 {
		var services corev1.ServiceList
		err := w.clusters[id].List(ctx, &services, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelServiceName: service})
		if err != nil {
			problem = err.Error()
		}
		for _, s := range services.Items {
			if slices.Contains(s.Spec.ClusterIPs, address) {
				return
			}
		}
		now, _, err := asked(w.clusters[id].dns, service, namespace, qtype)
		if ctx.Err() != nil || err == nil && service == "web" && !slices.Contains(now, address) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	w.t.Errorf("%s: an answer to %s.%s gets %s: %s", id, service, namespace, address, strings.TrimSpace(problem))
}
