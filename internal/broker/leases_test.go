package broker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// rosterOf is a ClusterSet with members that write in the namespaces of their names, and which may be silent for 2 minutes.
func rosterOf(members ...string) *v1alpha1.ClusterSet {
	set := &v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterSetName}}
	set.Spec.ExpireAfter = &metav1.Duration{Duration: time.Second} // less than the minimum, which then counts
	for _, member := range members {
		set.Spec.Members = append(set.Spec.Members, v1alpha1.Member{ClusterID: "id-" + member, Namespace: member})
	}
	return set
}

// leaseOf is a Lease that was renewed at a second of some day, by its owner's clock.
func leaseOf(namespace string, second int) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.LeaseName}}
	l.Spec.RenewTime = &metav1.MicroTime{Time: time.Unix(int64(second), 0)}
	return l
}

// TestSilence: own and east renew their Leases or do not, and own says whose records count.
func TestSilence(t *testing.T) {
	const every = v1alpha1.RenewEvery
	type step struct {
		do   func(*Records)
		want string // the services of east and own, and who is silent
	}
	put := func(namespace string, second int) func(*Records) {
		return func(r *Records) { r.Put(leaseOf(namespace, second)) }
	}
	list := func(leases ...*coordinationv1.Lease) func(*Records) {
		return func(r *Records) {
			var all []client.Object
			for _, l := range leases {
				all = append(all, l)
			}
			r.Replace(&coordinationv1.Lease{}, all)
		}
	}
	// goOn is n renewals of our own, and of nobody else.
	goOn := func(n int) func(*Records) {
		return func(r *Records) {
			for i := range n {
				time.Sleep(every)
				r.Put(leaseOf("own", 1000+i))
			}
		}
	}
	wait := func(d time.Duration) func(*Records) { return func(*Records) { time.Sleep(d) } }
	const all, alone = "east/a, own/c", "own/c; silent id-east"
	for name, steps := range map[string][]step{
		"a member that is silent goes, and is back with its first word": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{goOn(3), all},
			{goOn(1), alone},
			{goOn(10), alone},
			{put("east", 2), all},
			{goOn(3), all},
			{goOn(1), alone},
		},
		"one that renews stays": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{goOn(3), all},
			{put("east", 2), all},
			{goOn(3), all},
			{put("east", 2), all}, // whatever its clock says
			{goOn(3), all},
			{put("east", 1), all},
			{goOn(3), all},
		},
		"the time in which the broker is away does not count": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{goOn(3), all},
			{wait(time.Hour), all},
			{list(leaseOf("east", 1), leaseOf("own", 1)), all}, // nobody has had time yet
			{put("own", 2), all},
			{goOn(1), alone},
		},
		"a watch that tells of nothing shows nothing": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{wait(time.Hour), all},
			{put("own", 2), all},
			{wait(2*every + time.Second), all},
			{put("own", 3), all},
			{goOn(3), all},
			{goOn(1), alone},
		},
		"an older Lease in a list is a backup's, and no word": {
			{list(leaseOf("east", 5), leaseOf("own", 1)), all},
			{goOn(4), alone},
			{list(leaseOf("east", 4), leaseOf("own", 1)), alone},
			{list(leaseOf("own", 1)), alone},
			{list(leaseOf("east", 6), leaseOf("own", 1)), all},
		},
		"one whose Lease somebody deletes does not come back by that": {
			{list(leaseOf("east", 5), leaseOf("own", 1)), all},
			{goOn(4), alone},
			{func(r *Records) { r.Delete(leaseOf("east", 5)) }, alone},
			{list(leaseOf("own", 1)), alone},
			{goOn(1), alone},
			{put("east", 6), all},
		},
		"without a Lease nobody is judged": {
			{list(leaseOf("own", 1)), all},
			{goOn(10), all},
			{put("east", 1), all},
			{goOn(4), alone},
		},
		"we are never silent to ourselves": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{func(r *Records) {
				for range 10 {
					time.Sleep(every)
					r.Put(leaseOf("east", 1))
				}
			}, all},
		},
		"one that leaves is no longer known as silent": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{goOn(4), alone},
			{func(r *Records) { r.Put(rosterOf("own")) }, all}, // by the roster its records do not count, which is the agent's to see
			{func(r *Records) { r.Delete(leaseOf("east", 1)) }, all},
			{func(r *Records) { r.Put(rosterOf("own", "east")) }, all},
			{goOn(10), all},
		},
		"more time is given at once": {
			{list(leaseOf("east", 1), leaseOf("own", 1)), all},
			{goOn(4), alone},
			{func(r *Records) {
				set := rosterOf("own", "east")
				set.Spec.ExpireAfter = nil
				r.Put(set)
			}, all},
			{goOn(18), all},
			{goOn(1), alone}, // 15 minutes
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var said told
				r := NewRecords("own", said.poke)
				r.Put(rosterOf("own", "east"))
				r.Put(service("east/a"))
				r.Put(service("own/c"))
				r.Put(&v1alpha1.Endpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "east", Name: "g"}})
				before := all
				said.take()
				for i, step := range steps {
					step.do(r)
					show := func(v View) string {
						text := services(v)
						if len(v.Expired) > 0 {
							text += "; silent " + strings.Join(v.Expired, ",")
						}
						return text
					}
					if got := show(r.View()); got != step.want {
						t.Errorf("after step %d: %q, want %q", i+1, got, step.want)
					}
					if got := show(r.Service(web)); got != step.want {
						t.Errorf("after step %d, the one service: %q, want %q", i+1, got, step.want)
					}
					if got, want := len(r.Gateways().Gateways) == 0, step.want == alone; got != want {
						t.Errorf("after step %d: east has no Endpoint %t, want %t", i+1, got, want)
					}
					if text := said.take(); step.want != before && !strings.Contains(text, "all") {
						t.Errorf("step %d changes what counts, and tells of %q", i+1, text)
					}
					before = step.want
				}
			})
		})
	}
}

// What is held is held for as long as its owner is not there to write it again, and is not silent for too long.
func TestHeldUntilTheOwnerIsHeard(t *testing.T) {
	for name, returns := range map[string]bool{"the owner returns": true, "the owner does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRecords("own", func(Change) {})
				set := rosterOf("own", "east")
				set.Spec.ExpireAfter = nil
				r.Put(set)
				r.Put(service("east/a 5"))
				r.Put(service("east/b 5"))
				r.Replace(&coordinationv1.Lease{}, []client.Object{leaseOf("east", 1), leaseOf("own", 1)})
				r.Replace(oneService, listOf("east/b 4"))
				pass := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); {
						time.Sleep(v1alpha1.RenewEvery)
						r.Put(leaseOf("own", 2))
						synctest.Wait()
					}
				}
				check := func(want string) {
					t.Helper()
					if got := services(r.View()); got != want {
						t.Errorf("%q, want %q", got, want)
					}
				}
				pass(5 * HoldFor)
				check("east/a 5, east/b 5, held 2")
				if !returns {
					pass(v1alpha1.DefaultExpireAfter)
					check("")
					return
				}
				r.Put(leaseOf("east", 2))
				r.Put(service("east/b 6"))
				check("east/a 5, east/b 6, held 1")
				pass(HoldFor)
				check("east/b 6")
			})
		})
	}
}

// What was told of in the watches of the broker is told of Leases too: nothing but who is silent.
func TestRenewalsPokeNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said told
		r := NewRecords("own", said.poke)
		r.Put(rosterOf("own", "east"))
		said.take()
		r.Replace(&coordinationv1.Lease{}, []client.Object{leaseOf("east", 1)})
		for i := range 20 {
			time.Sleep(v1alpha1.RenewEvery)
			r.Put(leaseOf("east", i))
			r.Put(leaseOf("own", i))
		}
		if text := said.take(); text != "" {
			t.Errorf("told of %q", text)
		}
		if r.View().Synced {
			t.Error("Leases count among what must be listed: a broker from before them would never be whole")
		}
	})
}

// The ClusterSet of a broker that was restored from a backup has an older generation.
func TestOlderRosterIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		created := metav1.Now()
		roster := func(generation int64, members ...string) *v1alpha1.ClusterSet {
			set := rosterOf(members...)
			set.UID, set.Generation, set.CreationTimestamp = types.UID("u"), generation, created
			return set
		}
		r := NewRecords("own", func(Change) {})
		check := func(when string, members, held int) {
			t.Helper()
			synctest.Wait()
			if v := r.View(); len(v.ClusterSet.Spec.Members) != members || v.Held != held {
				t.Errorf("%s: %d members, %d held; want %d, %d", when, len(v.ClusterSet.Spec.Members), v.Held, members, held)
			}
		}
		r.Put(roster(7, "own", "east", "west"))
		check("at first", 3, 0)
		r.Replace(&v1alpha1.ClusterSet{}, []client.Object{roster(6, "own", "east")})
		check("restored", 3, 1)
		time.Sleep(HoldFor)
		check("the administrator left it so", 2, 0)
		r.Put(roster(7, "own"))
		check("a member is removed", 1, 0)
		r.Delete(roster(7, "own"))
		time.Sleep(time.Second)
		created = metav1.Now()
		r.Put(roster(1, "own", "east"))
		check("another broker in its place", 2, 0)
	})
}
