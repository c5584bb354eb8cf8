package uninstall

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"
)

func TestReason(t *testing.T) {
	const daemonSet = `{"kind":"DaemonSet","apiVersion":"apps/v1","metadata":{"name":"fastnet-gateway"%s}}`
	const node = `{"kind":"Node","apiVersion":"v1","metadata":{"name":"n1","labels":{%s}}}`
	status := func(code int, reason string) string {
		return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":"%s"}`, code, reason)
	}
	there, labelled := fmt.Sprintf(daemonSet, ""), fmt.Sprintf(node, `"fastnet.dev/gateway":"true"`)
	for _, test := range []struct {
		name                string
		code                int
		daemonSet           string
		nodeCode            int
		node                string
		want                string
		wantErr, unlabelled bool
	}{
		{name: "a restart", code: 200, daemonSet: there, nodeCode: 200, node: labelled},
		{name: "gone", code: 404, daemonSet: status(404, "NotFound"), want: "DaemonSet fastnet-gateway is gone"},
		{name: "going", code: 200, daemonSet: fmt.Sprintf(daemonSet, `,"deletionTimestamp":"2026-01-01T00:00:00Z"`), want: "DaemonSet fastnet-gateway is being deleted"},
		{name: "no permission", code: 403, daemonSet: status(403, "Forbidden"), want: "not allowed to read DaemonSet fastnet-gateway any more"},
		{name: "no account", code: 401, daemonSet: status(401, "Unauthorized"), want: "not allowed to read DaemonSet fastnet-gateway any more"},
		{name: "a sick API server", code: 500, daemonSet: status(500, "InternalError"), wantErr: true},
		{name: "no gateway node any more", code: 200, daemonSet: there, nodeCode: 200, node: fmt.Sprintf(node, ""), want: "node n1 has lost the label fastnet.dev/gateway=true"},
		{name: "node gone", code: 200, daemonSet: there, nodeCode: 404, node: status(404, "NotFound"), want: "node n1 is gone"},
		{name: "node unreadable", code: 200, daemonSet: there, nodeCode: 403, node: status(403, "Forbidden"), wantErr: true},
		{name: "no label asked for", code: 200, daemonSet: there, unlabelled: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				switch r.URL.Path {
				case "/apis/apps/v1/namespaces/fastnet-system/daemonsets/fastnet-gateway":
					w.WriteHeader(test.code)
					fmt.Fprint(w, test.daemonSet)
				case "/api/v1/nodes/n1":
					w.WriteHeader(test.nodeCode)
					fmt.Fprint(w, test.node)
				default:
					t.Errorf("asked for %s", r.URL)
				}
			}))
			defer server.Close()
			question := Question{DaemonSet: "fastnet-gateway", Node: "n1", NodeLabel: "fastnet.dev/gateway"}
			if test.unlabelled {
				question.NodeLabel = ""
			}
			got, err := Reason(t.Context(), &rest.Config{Host: server.URL}, question)
			if got != test.want || (err != nil) != test.wantErr {
				t.Errorf("reason %q, error %v; want %q, an error: %t", got, err, test.want, test.wantErr)
			}
		})
	}
}

// An API server that does not answer is no uninstall.
func TestNoAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := Reason(ctx, &rest.Config{Host: "http://127.0.0.1:1"}, Question{DaemonSet: "x"}); got != "" || err == nil {
		t.Errorf("reason %q, error %v; want none and an error", got, err)
	}
}
