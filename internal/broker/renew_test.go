package broker

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestRenewal(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := coordinationv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	server := fake.NewClientBuilder().WithScheme(scheme).Build()
	key := client.ObjectKey{Namespace: "east", Name: v1alpha1.LeaseName}
	seen := time.Time{}
	say := word{settled: 7}
	renew := func(r *renewal, when string, second int, wantRestored bool) *coordinationv1.Lease {
		t.Helper()
		restored, err := r.renew(t.Context(), time.Unix(int64(second), 0), say)
		if err != nil || restored != wantRestored {
			t.Errorf("%s: restored %t, error %v", when, restored, err)
		}
		var l coordinationv1.Lease
		if err := server.Get(t.Context(), key, &l); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if !renewedAt(&l).After(seen) {
			t.Errorf("%s: renewed at %v, and before at %v", when, renewedAt(&l), seen)
		}
		seen = renewedAt(&l)
		if want := map[bool]string{false: "7"}[wantRestored]; l.Annotations[v1alpha1.AnnotationSettled] != want {
			t.Errorf("%s: the Lease says %v, want settled %q", when, l.Annotations, want)
		}
		if want := map[bool]string{true: "true"}[say.awaits]; l.Annotations[v1alpha1.AnnotationAwaits] != want {
			t.Errorf("%s: the Lease says %v, want awaits %q", when, l.Annotations, want)
		}
		return &l
	}
	r := &renewal{client: server, namespace: "east"}
	renew(r, "first", 1000, false)
	backup := renew(r, "again", 1040, false)
	renew(r, "and again", 1080, false)

	// The broker is restored: the Lease is an older one.
	if err := server.Delete(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	backup.ResourceVersion = ""
	if err := server.Create(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	renew(r, "restored", 1080, true)
	renew(r, "restored, and on", 1120, false)
	if err := server.Delete(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	renew(r, "restored from before the first", 1120, true)

	// A new process, on a node whose clock is wrong.
	say.awaits = true
	r = &renewal{client: server, namespace: "east"}
	l := renew(r, "started", 3, false)
	say.awaits = false
	renew(r, "started, and on", 43, false)
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		t.Error("the Lease does not say who holds it")
	}
}
