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
	last      *coordinationv1.Lease // as we wrote or saw it last; nil before that
	tried     time.Time             // the time of the latest renewal that we have tried to write
}

// word is what a Lease says beside that it was renewed.
type word struct {
	settled uint64 // v1alpha1.AnnotationSettled, 0 for nothing
	awaits  uint64 // v1alpha1.AnnotationAwaits, 0 for nothing
}

// renew makes or renews the Lease. It reports restored, once, where the broker has another one than we wrote: it may have been restored
// from a backup since then, or there is another agent. Then nothing is vouched for, whatever the word is. One that we wrote without ever
// having an answer is our own: a broker with too much to do would otherwise be listed anew by everybody, which gives it more to do.
func (r *renewal) renew(ctx context.Context, now time.Time, say word) (restored bool, err error) {
	if r.last != nil {
		next := r.next(r.last, now, say)
		err = r.client.Update(ctx, next)
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return false, r.wrote(next, err)
		}
	}
	there := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: r.namespace, Name: v1alpha1.LeaseName}}
	write := func(next *coordinationv1.Lease) error { return r.client.Update(ctx, next) }
	switch err := r.client.Get(ctx, client.ObjectKeyFromObject(there), there); {
	case apierrors.IsNotFound(err):
		restored = r.last != nil
		r.last = nil
		write = func(next *coordinationv1.Lease) error { return r.client.Create(ctx, next) }
	case err != nil:
		return false, err // what is there is seen next time
	default:
		restored = r.last != nil && !r.unanswered(there)
		r.last = there
	}
	if restored {
		say.settled = 0
	}
	next := r.next(there, now, say)
	return restored, r.wrote(next, write(next))
}

// unanswered says whether a Lease is one that we have tried to write after the last one. Those of backups are earlier, since our times never
// fall, and those of another agent have another holder.
func (r *renewal) unanswered(there *coordinationv1.Lease) bool {
	at := renewedAt(there)
	return at.After(renewedAt(r.last)) && !at.After(r.tried) && there.Spec.HolderIdentity != nil && *there.Spec.HolderIdentity == holder()
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
	at := later(now, later(renewedAt(next), r.tried).Add(time.Microsecond))
	r.tried = at
	holder := holder()
	next.Spec.HolderIdentity = &holder
	next.Spec.RenewTime = &metav1.MicroTime{Time: at}
	for annotation, version := range map[string]uint64{v1alpha1.AnnotationSettled: say.settled, v1alpha1.AnnotationAwaits: say.awaits} {
		delete(next.Annotations, annotation)
		if version > 0 {
			metav1.SetMetaDataAnnotation(&next.ObjectMeta, annotation, strconv.FormatUint(version, 10))
		}
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
