package fastnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/fastnet-io/fastnet/internal/routeview"
)

func TestShowRoutes(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	answers := map[string]routeview.Node{
		"agent-1": {Node: "worker1", Ways: []routeview.Way{
			{ClusterID: "west", Family: "IPv4", Gateway: "worker1", Endpoint: "west.n7", Path: routeview.Cable, Hop: "dev fastnet-wabc", Used: true, State: "up",
				Since: now.Add(-3 * time.Hour), RTT: 0.0001, Live: true, MTU: 1420},
			{ClusterID: "west", Family: "IPv4", Gateway: "worker3", Path: routeview.Direct, State: "up", Since: now.Add(-time.Minute), RTT: 0.0004, Live: true, Draining: true, MTU: 1500},
		}},
		"agent-2": {Node: "worker2", Problems: []string{"the kernel of this node does not forward IPv6: the CNI should have switched that on"}, Ways: []routeview.Way{
			{ClusterID: "west", Family: "IPv6", Gateway: "worker1", Path: routeview.Tunnel, State: "up", Since: now.Add(-12 * time.Second), RTT: 0.02, MTU: 1450},
			{ClusterID: "west", Family: "IPv4", Gateway: "worker1", Path: routeview.Tunnel, State: "unknown"},
			{ClusterID: "west", Family: "IPv4", Gateway: "worker3", Path: routeview.Direct, Used: true, State: "down", Since: now.Add(-12 * time.Second), MTU: 9000},
		}},
	}
	var pods []corev1.Pod
	for _, name := range []string{"agent-3", "agent-2", "agent-1"} {
		pod := corev1.Pod{}
		pod.Name, pod.Spec.NodeName = name, "worker"+name[len("agent-"):]
		if name != "agent-1" {
			pod.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 19472}}}}
		}
		pods = append(pods, pod)
	}
	var seen view
	seen.Routes, seen.Problems = askNodes(t.Context(), pods, func(_ context.Context, pod, port string) ([]byte, error) {
		if want := map[string]string{"agent-1": "9472"}[pod]; port != want && (want != "" || port != "19472") {
			t.Errorf("%s is asked at port %s", pod, port)
		}
		answer, ok := answers[pod]
		if !ok {
			return nil, errors.New("connection refused")
		}
		return json.Marshal(answer)
	})
	var out, errOut bytes.Buffer
	if err := seen.print(&out, &errOut, "routes", "", now); err != nil {
		t.Fatal(err)
	}
	const want = `NODE      CLUSTER   FAMILY   GATEWAY   PATH            USED   STATE           RTT      MTU    SINCE
worker1   west      IPv4     worker1   cable west.n7   yes    up              0.1ms    1420   3h
worker1   west      IPv4     worker3   direct          no     up (draining)   0.4ms    1500   60s
worker2   west      IPv4     worker1   tunnel          no     unknown         -        -      -
worker2   west      IPv4     worker3   direct          yes    down            -        9000   12s
worker2   west      IPv6     worker1   tunnel          no     no cable        20.0ms   1450   12s
Problem on node worker2: the kernel of this node does not forward IPv6: the CNI should have switched that on
Problem on node worker3: its route agent agent-3 does not answer: connection refused
`
	if diff := cmp.Diff(want, out.String()); diff != "" || errOut.Len() > 0 {
		t.Errorf("-want +got:\n%s%s", diff, &errOut)
	}
}
