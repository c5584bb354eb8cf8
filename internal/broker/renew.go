package broker

import (
	"context"
	"os"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// renewal renews the Lease of this member.
type renewal struct {
	client    client.Client
	namespace string
	last      *coordinationv1.Lease // as we wrote it; nil before that
}

// word is what a Lease says beside that it was renewed.
type word struct {
	settled uint64 // v1alpha1.AnnotationSettled, 0 for nothing
	awaits  bool   // v1alpha1.AnnotationAwaits
}

// renew makes or renews the Lease. It reports restored where the broker has another one than we wrote: it may have been restored from
// a backup since then, or there is another agent. Then nothing is vouched for, whatever the word is.
func (r *renewal) renew(ctx context.Context, now time.Time, say word) (restored bool, err error) {
	if r.last != nil {
		next := r.next(r.last, now, say)
		err = r.client.Update(ctx, next)
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return false, r.wrote(next, err)
		}
		restored, say.settled = true, 0
	}
	there := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: v1alpha1.LeaseName}}
	err = r.client.Get(ctx, client.ObjectKeyFromObject(there), there)
	switch {
	case apierrors.IsNotFound(err):
		next := r.next(there, now, say)
		return restored, r.wrote(next, r.client.Create(ctx, next))
	case err != nil:
		return restored, err
	}
	next := r.next(there, now, say)
	return restored, r.wrote(next, r.client.Update(ctx, next))
}

func (r *renewal) wrote(lease *coordinationv1.Lease, err error) error {
	if err == nil {
		r.last = lease
	}
	return err
}

// next is a Lease, renewed. The time of a renewal never falls, whatever the clock says and whichever Lease the broker has: that is how
// the others know one that comes from a backup.
func (r *renewal) next(lease *coordinationv1.Lease, now time.Time, say word) *coordinationv1.Lease {
	next := lease.DeepCopy()
	at := later(now, renewedAt(next).Add(time.Microsecond))
	if r.last != nil {
		at = later(at, renewedAt(r.last).Add(time.Microsecond))
	}
	holder := holder()
	next.Spec.HolderIdentity = &holder
	next.Spec.RenewTime = &metav1.MicroTime{Time: at}
	delete(next.Annotations, v1alpha1.AnnotationSettled)
	delete(next.Annotations, v1alpha1.AnnotationAwaits)
	if say.settled > 0 {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, v1alpha1.AnnotationSettled, strconv.FormatUint(say.settled, 10))
	}
	if say.awaits {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, v1alpha1.AnnotationAwaits, "true")
	}
	return next
}

// holder is for people: the name of the host, which in a pod is the pod's.
func holder() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return v1alpha1.LeaseName
	}
	return name
}
