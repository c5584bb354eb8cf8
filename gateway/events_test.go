package gateway

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestEvents(t *testing.T) {
	status := func(cables string, problems ...string) v1alpha1.GatewayStatus {
		s := v1alpha1.GatewayStatus{Problems: problems}
		for _, word := range strings.Fields(cables) {
			endpoint, state, _ := strings.Cut(word, "=")
			cluster, _, _ := strings.Cut(endpoint, ".")
			s.Cables = append(s.Cables, v1alpha1.Cable{ClusterID: cluster, Endpoint: endpoint, State: v1alpha1.CableState(state)})
		}
		return s
	}
	for _, test := range []struct {
		name        string
		before, now v1alpha1.GatewayStatus
		want        string
	}{
		{"a process starts", v1alpha1.GatewayStatus{}, status("c2.a=up c2.b=down"), ""},
		{"nothing new", status("c2.a=up c2.b=down", "old"), status("c2.a=up c2.b=down", "old"), ""},
		{"first up", status("c2.a=connecting"), status("c2.a=up"), "Normal CableUp the cable to c2.a is up\n"},
		{"one of two goes", status("c2.a=up c2.b=up"), status("c2.a=down c2.b=up"), "Warning CableDown the cable to c2.a is down\n"},
		{"both go", status("c2.a=up c2.b=up c3.x=up"), status("c2.a=down c2.b=down c3.x=up"),
			"Warning CableDown the cable to c2.a is down\nWarning CableDown the cable to c2.b is down\nWarning NoCable no cable of this gateway to cluster c2 is up\n"},
		{"a problem comes, another goes", status("", "old"), status("", "new"), "Warning Problem new\n"},
	} {
		var got string
		for _, e := range events(test.before, test.now) {
			got += fmt.Sprintln(e.kind, e.reason, e.message)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", test.name, diff)
		}
	}
}
