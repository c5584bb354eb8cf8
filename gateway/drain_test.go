package gateway

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/gateway/cable"
	"github.com/fastnet-io/fastnet/internal/nodeprobe"
)

func TestDrainedWhenNothingIsCarried(t *testing.T) {
	now := time.Unix(1000, 0)
	var traffic traffic
	total, probes := uint64(1000), uint64(600)
	// pass time in which so many packets go through a cable every 100 ms, beside its probes; the state at the end, and how
	// often it changed.
	pass := func(samples int, packets uint64) (state string, changes int) {
		for range samples {
			now = now.Add(sampleEvery)
			total, probes = total+packets+4, probes+4
			report := cable.Report{Cables: []cable.Cable{{Endpoint: "c2.a", Packets: total}, {Endpoint: "c2.b", Packets: 77}}}
			if traffic.look(now, report, map[string]uint64{"c2.a": probes, "c2.b": 99}) {
				changes++
			}
		}
		return traffic.state(), changes
	}
	for i, step := range []struct {
		node    bool
		samples int
		packets uint64
		want    string
		changes int
	}{
		{false, 30, 0, "", 0},
		{true, 10, 0, v1alpha1.DrainDraining, 0}, // a second has not passed
		{true, 1, 0, v1alpha1.DrainDrained, 1},
		{true, 3, 50, v1alpha1.DrainDraining, 1}, // somebody came back
		{true, 30, 50, v1alpha1.DrainDraining, 0},
		{true, 30, 0, v1alpha1.DrainDrained, 1},
		{false, 30, 50, "", 1},
		{true, 1, 0, v1alpha1.DrainDraining, 0}, // begins anew
		{true, 20, 0, v1alpha1.DrainDrained, 1},
	} {
		traffic.drainNode(step.node)
		if state, changes := pass(step.samples, step.packets); state != step.want || changes != step.changes {
			t.Errorf("step %d: %q after %d changes, want %q after %d", i, state, changes, step.want, step.changes)
		}
	}
	traffic.drainNode(false)
	if traffic.end(); !traffic.draining() {
		t.Error("the end is no drain")
	}
	if len(traffic.samples) > int(quietFor/sampleEvery)+2 {
		t.Errorf("%d samples are kept", len(traffic.samples))
	}
}

func TestPeersAndNodesAreTold(t *testing.T) {
	p := testProber()
	up, peerDrains := cableTo("c2.a"), cableTo("c2.b")
	up.ClusterID, peerDrains.ClusterID = "c2", "c2"
	p.set(cable.Report{Cables: []cable.Cable{up, peerDrains, cableTo("c3.x")}})
	for endpoint, flags := range map[string]byte{"c2.a": 0, "c2.b": flagDraining} {
		l := p.lines[endpoint]
		sequence, _ := l.path.Probe(time.Now())
		p.take(probe(kindAnswer, flags, sequence, p.mark), l.cable.Probe, l, time.Now())
	}
	want := nodeprobe.View{Draining: true, Cables: []nodeprobe.Cable{
		{Endpoint: "c2.a", ClusterID: "c2", Up: true}, {Endpoint: "c2.b", ClusterID: "c2", Draining: true}, {Endpoint: "c3.x"},
	}}
	if diff := cmp.Diff(want, nodeView(p.health(), true)); diff != "" {
		t.Errorf("nodes are told -want +got:\n%s", diff)
	}
	for i, draining := range []bool{true, true, false} {
		if changed := p.drain(draining); changed != (i != 1) {
			t.Errorf("drain(%t), the %d. time, is a change: %t", draining, i+1, changed)
		}
		answer := p.take(probe(kindQuestion, 0, 7, 8), up.Probe, p.lines["c2.a"], time.Now())
		if (answer[5]&flagDraining != 0) != draining {
			t.Errorf("draining %t: the peer is told %d", draining, answer[5])
		}
	}
}

func TestNodesAreKeptSlimAndStillDrain(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", Annotations: map[string]string{v1alpha1.AnnotationDrain: "true", "other": "x"}, Labels: map[string]string{"a": "b"}},
		Spec:   corev1.NodeSpec{Unschedulable: true, PodCIDR: "10.8.0.0/24"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}, Images: []corev1.ContainerImage{{SizeBytes: 1}}}}
	slim, err := slimNode(node)
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", Annotations: map[string]string{v1alpha1.AnnotationDrain: "true"}},
		Spec: corev1.NodeSpec{Unschedulable: true}, Status: corev1.NodeStatus{Addresses: node.Status.Addresses}}
	if diff := cmp.Diff(want, slim); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A cable that is asked to stay before it counts is told as up where the cluster has no better one, and as down where it has.
func TestNodesAreToldOfWhatRecovers(t *testing.T) {
	health := map[string]Health{
		"c2.a": {ClusterID: "c2", State: v1alpha1.CableDown, Recovering: true},
		"c2.b": {ClusterID: "c2", State: v1alpha1.CableDown},
		"c3.a": {ClusterID: "c3", State: v1alpha1.CableDown, Recovering: true},
		"c3.b": {ClusterID: "c3", State: v1alpha1.CableUp},
		"c4.a": {ClusterID: "c4", State: v1alpha1.CableDown, Recovering: true},
		"c4.b": {ClusterID: "c4", State: v1alpha1.CableUp, Draining: true},
	}
	want := nodeprobe.View{Cables: []nodeprobe.Cable{
		{Endpoint: "c2.a", ClusterID: "c2", Up: true}, {Endpoint: "c2.b", ClusterID: "c2"},
		{Endpoint: "c3.a", ClusterID: "c3"}, {Endpoint: "c3.b", ClusterID: "c3", Up: true},
		{Endpoint: "c4.a", ClusterID: "c4", Up: true}, {Endpoint: "c4.b", ClusterID: "c4", Draining: true},
	}}
	if diff := cmp.Diff(want, nodeView(health, false)); diff != "" {
		t.Errorf("nodes are told -want +got:\n%s", diff)
	}
}
