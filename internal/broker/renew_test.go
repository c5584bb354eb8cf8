package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestRenewal(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := coordinationv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	unanswered := false // the next write is done, and nobody hears of it
	server := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			if !unanswered {
				return c.Update(ctx, o, options...)
			}
			written, ok := o.DeepCopyObject().(client.Object)
			if !ok {
				return fmt.Errorf("a copy of %T is none", o)
			}
			if err := c.Update(ctx, written, options...); err != nil {
				return err
			}
			unanswered = false
			return context.DeadlineExceeded
		},
	}).Build()
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
		if want := map[bool]string{true: "9"}[say.awaits > 0]; l.Annotations[v1alpha1.AnnotationAwaits] != want {
			t.Errorf("%s: the Lease says %v, want awaits %q", when, l.Annotations, want)
		}
		return &l
	}
	r := &renewal{client: server, namespace: "east"}
	renew(r, "first", 1000, false)
	backup := renew(r, "again", 1040, false)
	renew(r, "and again", 1080, false)

	// A write whose answer never came is no restore: a broker with too much to do would be listed anew, and have more.
	for _, second := range []int{1120, 1040} { // once the clock is set back meanwhile
		unanswered = true
		if _, err := r.renew(t.Context(), time.Unix(1120, 0), say); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("unanswered: %v", err)
		}
		renew(r, "after a write without an answer", second, false)
	}

	// The broker is restored: the Lease is an older one. So it is where the last attempt had no answer.
	unanswered = true
	if _, err := r.renew(t.Context(), time.Unix(1120, 0), say); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unanswered: %v", err)
	}
	if err := server.Delete(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	backup.ResourceVersion = ""
	if err := server.Create(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	renew(r, "restored", 1080, true)
	renew(r, "restored, and on", 1120, false)

	// That it was restored is said once, whatever becomes of the writes.
	if err := server.Get(t.Context(), key, backup); err != nil {
		t.Fatal(err)
	}
	if err := server.Update(t.Context(), backup); err != nil { // another version, and the same time
		t.Fatal(err)
	}
	unanswered = true
	if restored, err := r.renew(t.Context(), time.Unix(1120, 0), say); !errors.Is(err, context.DeadlineExceeded) || !restored {
		t.Errorf("restored, and unanswered: restored %t, error %v", restored, err)
	}
	renew(r, "restored, unanswered, and on", 1120, false)
	if err := server.Delete(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	renew(r, "restored from before the first", 1120, true)

	// A new process, on a node whose clock is wrong.
	say.awaits = 9
	r = &renewal{client: server, namespace: "east"}
	l := renew(r, "started", 3, false)
	say.awaits = 0
	renew(r, "started, and on", 43, false)
	if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		t.Error("the Lease does not say who holds it")
	}
}
