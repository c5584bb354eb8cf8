package broker

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

var (
	oneService = &v1alpha1.ExportedService{}
	web        = types.NamespacedName{Namespace: "shop", Name: "web"}
)

// told gathers what Records tell, in words.
type told struct {
	mu    sync.Mutex
	words []string
}

func (t *told) poke(c Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case c.All:
		t.words = append(t.words, "all")
	case c.Gateways:
		t.words = append(t.words, "gateways")
	case c.Theirs:
		t.words = append(t.words, c.Service.String())
	default:
		t.words = append(t.words, "our "+c.Service.String())
	}
}

func (t *told) take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	words := strings.Join(t.words, " ")
	t.words = nil
	return words
}

// A change of a record says whether the record is ours.
func TestWhoseRecordChanged(t *testing.T) {
	var heard told
	r := NewRecords("own", heard.poke)
	for _, step := range []struct{ record, want string }{{"east/a 1", "shop/web"}, {"own/a 1", "our shop/web"}} {
		r.Put(service(step.record))
		if got := heard.take(); got != step.want {
			t.Errorf("put %s: told of %q, want %q", step.record, got, step.want)
		}
		r.Delete(service(step.record))
		if got := heard.take(); got != step.want {
			t.Errorf("delete %s: told of %q, want %q", step.record, got, step.want)
		}
	}
}

// service is "namespace/name version", of the Service shop/web; a version of 0 is none, one that ends in ! a tombstone.
func service(text string) *v1alpha1.ExportedService {
	name, version, _ := strings.Cut(text, " ")
	namespace, name, _ := strings.Cut(name, "/")
	version, tombstone := strings.CutSuffix(version, "!")
	s := &v1alpha1.ExportedService{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.ExportedServiceSpec{Namespace: web.Namespace, Name: web.Name, Withdrawn: tombstone},
	}
	if version != "" {
		s.Annotations = map[string]string{v1alpha1.AnnotationVersion: version}
	}
	return s
}

func listOf(texts ...string) []client.Object {
	var all []client.Object
	for _, text := range texts {
		all = append(all, service(text))
	}
	return all
}

// services shows a view in the form of service.
func services(v View) string {
	var all []string
	for _, s := range v.Services {
		all = append(all, strings.TrimSpace(s.Namespace+"/"+s.Name+" "+s.Annotations[v1alpha1.AnnotationVersion]))
	}
	for _, object := range v.Withdrawn {
		all = append(all, fmt.Sprintf("%s/%s %s!", object.GetNamespace(), object.GetName(), object.GetAnnotations()[v1alpha1.AnnotationVersion]))
	}
	if v.Held > 0 {
		all = append(all, fmt.Sprintf("held %d", v.Held))
	}
	return strings.Join(all, ", ")
}

// TestRecords tells the life of the service shop/web on a broker, as east and own write it.
func TestRecords(t *testing.T) {
	list := func(texts ...string) func(*Records) {
		return func(r *Records) { r.Replace(oneService, listOf(texts...)) }
	}
	put := func(text string) func(*Records) { return func(r *Records) { r.Put(service(text)) } }
	remove := func(text string) func(*Records) { return func(r *Records) { r.Delete(service(text)) } }
	away := func(is bool) func(*Records) { return func(r *Records) { r.Away(is) } }
	wait := func(d time.Duration) func(*Records) {
		return func(*Records) { time.Sleep(d); synctest.Wait() }
	}
	type step struct {
		do   func(*Records)
		want string
	}
	for name, steps := range map[string][]step{
		"a deletion that was seen counts at once": {
			{list("east/b", "east/a", "own/c"), "east/a, east/b, own/c"},
			{remove("east/b"), "east/a, own/c"},
		},
		"an absence is held, but not of what is ours to write again": {
			{list("east/a", "own/c"), "east/a, own/c"},
			{list(), "east/a, held 1"},
			{wait(HoldFor - time.Second), "east/a, held 1"},
			{list(), "east/a, held 1"},
			{wait(time.Second), ""},
		},
		"back in time": {
			{list("east/a"), "east/a"},
			{list(), "east/a, held 1"},
			{put("east/a"), "east/a"},
			{wait(HoldFor), "east/a"},
		},
		"deleted while held": {
			{list("east/a"), "east/a"},
			{list(), "east/a, held 1"},
			{remove("east/a"), ""},
		},
		"gone a second time, and held from then": {
			{list("east/a"), "east/a"},
			{list(), "east/a, held 1"},
			{wait(HoldFor / 2), "east/a, held 1"},
			{put("east/a"), "east/a"},
			{list(), "east/a, held 1"},
			{wait(HoldFor / 2), "east/a, held 1"},
			{wait(HoldFor / 2), ""},
		},
		"while the broker is away nothing held ends, and all has its time anew then": {
			{list("east/a", "east/b 5"), "east/a, east/b 5"},
			{list("east/b 4"), "east/a, east/b 5, held 2"},
			{wait(HoldFor - time.Second), "east/a, east/b 5, held 2"},
			{away(true), "east/a, east/b 5, held 2"},
			{wait(10 * HoldFor), "east/a, east/b 5, held 2"},
			{away(false), "east/a, east/b 5, held 2"},
			{list("east/b 4"), "east/a, east/b 5, held 2"},
			{put("east/b 6"), "east/a, east/b 6, held 1"},
			{wait(HoldFor - time.Second), "east/a, east/b 6, held 1"},
			{wait(time.Second), "east/b 6"},
		},
		"a newer version counts at once": {
			{put("east/a 5"), "east/a 5"},
			{put("east/a 6"), "east/a 6"},
			{list("east/a 7"), "east/a 7"},
		},
		"an older copy does not replace what is known, until its owner has had time": {
			{put("east/a 5"), "east/a 5"},
			{list("east/a 4"), "east/a 5, held 1"},
			{wait(HoldFor - time.Second), "east/a 5, held 1"},
			{put("east/a 4"), "east/a 5, held 1"},
			{wait(time.Second), "east/a 4"},
			{put("east/a 5"), "east/a 5"},
		},
		"an older copy is written anew": {
			{put("east/a 5"), "east/a 5"},
			{list("east/a 4"), "east/a 5, held 1"},
			{put("east/a 6"), "east/a 6"},
			{wait(HoldFor), "east/a 6"},
		},
		"an owner that lost its clock is heard in time, however often it writes": {
			{put("east/a 50"), "east/a 50"},
			{put("east/a 4"), "east/a 50, held 1"},
			{wait(HoldFor / 2), "east/a 50, held 1"},
			{put("east/a 5"), "east/a 50, held 1"},
			{wait(HoldFor / 2), "east/a 5"},
			{put("east/a 6"), "east/a 6"},
		},
		"a copy older still is given time anew": {
			{put("east/a 50"), "east/a 50"},
			{list("east/a 5"), "east/a 50, held 1"},
			{wait(HoldFor / 2), "east/a 50, held 1"},
			{list("east/a 4"), "east/a 50, held 1"},
			{wait(HoldFor / 2), "east/a 50, held 1"},
			{wait(HoldFor / 2), "east/a 4"},
		},
		"what was deleted does not come back in an older copy": {
			{put("east/a 5"), "east/a 5"},
			{remove("east/a 5"), ""},
			{list("east/a 4"), ""},
			{put("east/a 6"), "east/a 6"},
			{remove("east/a 6"), ""},
			{list("east/a 4"), ""},
			{wait(HoldFor), "east/a 4"}, // whoever could have deleted it again is gone
		},
		"what was deleted comes back and is deleted again": {
			{put("east/a 5"), "east/a 5"},
			{remove("east/a 5"), ""},
			{list("east/a 4"), ""},
			{remove("east/a 4"), ""},
			{wait(HoldFor), ""},
		},
		"an older copy of what counts is deleted": {
			{put("east/a 5"), "east/a 5"},
			{list("east/a 4"), "east/a 5, held 1"},
			{remove("east/a 4"), ""},
		},
		"a tombstone is at once, and its absence needs no hold": {
			{put("east/a 5"), "east/a 5"},
			{put("east/a 6!"), ""},
			{list(), ""},
			{list("east/a 5"), ""},
			{put("east/a 7"), "east/a 7"},
		},
		"a tombstone is as old as any record": {
			{put("east/a 5!"), ""},
			{put("east/a 6"), "east/a 6"},
			{list("east/a 5!"), "east/a 6, held 1"},
			{put("east/a 7!"), ""},
		},
		"our own tombstones are seen, and what is ours is what the broker has": {
			{put("own/c 5"), "own/c 5"},
			{put("own/c 6!"), "own/c 6!"},
			{list("own/c 5"), "own/c 5"},
			{put("own/c 7!"), "own/c 7!"},
			{list(), ""},
		},
		"a record without a version is older than any": {
			{put("east/a"), "east/a"},
			{put("east/a 1"), "east/a 1"},
			{put("east/a"), "east/a 1, held 1"},
			{put("east/a abc"), "east/a 1, held 1"},
			{put("east/a -9"), "east/a 1, held 1"},
			{wait(HoldFor), "east/a -9"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRecords("own", func(Change) {})
				for i, step := range steps {
					step.do(r)
					if got := services(r.View()); got != step.want {
						t.Errorf("after step %d: %q, want %q", i+1, got, step.want)
					}
					if got := services(r.Service(web)); got != step.want {
						t.Errorf("after step %d, the one service: %q, want %q", i+1, got, step.want)
					}
				}
			})
		})
	}
}

func TestViewsSortKindsApart(t *testing.T) {
	r := NewRecords("own", func(Change) {})
	meta := metav1.ObjectMeta{Namespace: "n", Name: "x"}
	spec := v1alpha1.ExportedEndpointsSpec{Namespace: "shop", Service: "web"}
	r.Put(&v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	r.Put(&v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterSetName}})
	r.Put(&v1alpha1.ExportedEndpoints{ObjectMeta: meta, Spec: spec})
	r.Put(&v1alpha1.Endpoint{ObjectMeta: meta})
	r.Put(service("n/x"))
	r.Put(&v1alpha1.Gateway{ObjectMeta: meta})
	spec.Withdrawn = true
	r.Put(&v1alpha1.ExportedEndpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "own", Name: "y"}, Spec: spec})
	show := func(v View) string {
		set := "no set"
		if v.ClusterSet != nil {
			set = v.ClusterSet.Name
		}
		return fmt.Sprint(set, " ", len(v.Services), len(v.Endpoints), len(v.Gateways), len(v.Withdrawn), v.Synced)
	}
	for _, test := range []struct {
		which, want string
		view        View
	}{
		{"all", "clusterset 1 1 1 1 false", r.View()},
		{"one service", "clusterset 1 1 0 1 false", r.Service(web)},
		{"another service", "clusterset 0 0 0 0 false", r.Service(types.NamespacedName{Namespace: "shop", Name: "cart"})},
		{"gateways", "clusterset 0 0 1 0 false", r.Gateways()},
	} {
		if got := show(test.view); got != test.want {
			t.Errorf("%s: %s, want %s", test.which, got, test.want)
		}
	}
	if got := r.Services(); !slices.Equal(got, []types.NamespacedName{web}) {
		t.Errorf("services %v", got)
	}
}

// TestPokes looks at what is told, and that each list of all kinds makes it whole.
func TestPokes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said told
		r := NewRecords("own", said.poke)
		check := func(when, want string) {
			t.Helper()
			synctest.Wait()
			got := strings.Fields(said.take())
			slices.Sort(got) // of several records that a list lacks any may be the first
			if text := strings.Join(got, " "); text != want {
				t.Errorf("%s: told of %q, want %q", when, text, want)
			}
		}
		endpoint := &v1alpha1.Endpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "east", Name: "g"}}
		set := &v1alpha1.ClusterSet{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterSetName}}
		version := func(n int, s *v1alpha1.ExportedService) *v1alpha1.ExportedService {
			s.ResourceVersion = strconv.Itoa(n)
			return s
		}
		a := version(1, service("east/a"))

		r.Replace(&v1alpha1.ClusterSet{}, []client.Object{set})
		r.Replace(&v1alpha1.ExportedEndpoints{}, nil)
		r.Replace(&v1alpha1.Endpoint{}, nil)
		check("first lists", "all all all")
		if r.View().Synced {
			t.Error("synced before the last list")
		}
		r.Replace(oneService, []client.Object{a, version(2, service("east/b"))})
		check("the last of them", "all")
		if !r.View().Synced || !r.Service(web).Synced || !r.Gateways().Synced {
			t.Error("not synced after the last list")
		}

		r.Replace(oneService, []client.Object{a, version(2, service("east/b"))})
		check("a list with nothing new", "")
		r.Put(endpoint)
		check("an Endpoint", "gateways")
		r.Delete(endpoint)
		check("an Endpoint deleted", "gateways")
		r.Delete(endpoint)
		check("deleted again", "")
		r.Put(set)
		check("the roster", "all")

		moved := version(3, service("east/a"))
		moved.Spec.Name = "cart"
		r.Put(moved)
		check("a record that now speaks of another service", "shop/cart shop/web")
		if got := services(r.Service(types.NamespacedName{Namespace: "shop", Name: "cart"})); got != "east/a" {
			t.Errorf("it is not found under its new name: %q", got)
		}
		if got := services(r.Service(web)); got != "east/b" {
			t.Errorf("it is found under its old name: %q", got)
		}

		r.Replace(oneService, nil)
		check("a hold begins", "shop/cart shop/web")
		time.Sleep(HoldFor)
		check("and ends", "shop/cart shop/web")
		if got := r.Services(); len(got) != 0 {
			t.Errorf("services %v", got)
		}
	})
}

// Versions of what is gone are remembered, and not for ever.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecords("own", func(Change) {})
		for i := range maxGone + 1 {
			s := service(fmt.Sprintf("east/s%d 5", i))
			r.Put(s)
			r.Delete(s)
		}
		if got := len(r.records); got != maxGone {
			t.Errorf("%d records are remembered, want %d", got, maxGone)
		}
		r.Put(service("east/s0 4"))
		r.Put(service("east/s1 4"))
		if got := services(r.View()); got != "east/s0 4" {
			t.Errorf("%q counts, want the forgotten one alone", got)
		}
		r.Put(service("east/s2"))
		r.Delete(service("east/s2"))
		r.Put(service("own/s2 7"))
		r.Delete(service("own/s2 7"))
		r.Put(service("east/s3"))
		r.Delete(service("east/s3"))
		if got := len(r.records); got > maxGone+2 {
			t.Errorf("%d records are remembered", got)
		}
	})
}

func TestNextVersion(t *testing.T) {
	now := time.UnixMilli(1000)
	for previous, want := range map[string]string{
		"": "1000", "999": "1000", "1000": "1001", "5000": "5001", "x": "1000", "-4": "1000", "9223372036854775807": "1000",
	} {
		if got := NextVersion(previous, now); got != want {
			t.Errorf("after %q: %s, want %s", previous, got, want)
		}
	}
}

// TestAwaited: an agent that starts awaits the word of every member, and for how long.
func TestAwaited(t *testing.T) {
	vouching := func(namespace string, since string) *coordinationv1.Lease {
		l := leaseOf(namespace, 1)
		l.Annotations = map[string]string{v1alpha1.AnnotationSettled: since}
		return l
	}
	leases := func(all ...client.Object) func(*Records) {
		return func(r *Records) { r.Replace(&coordinationv1.Lease{}, all) }
	}
	put := func(l *coordinationv1.Lease) func(*Records) { return func(r *Records) { r.Put(l) } }
	came := func(version uint64) func(*Records) { return func(r *Records) { r.Came(version) } }
	list := func(r *Records) {
		for _, of := range []client.Object{&v1alpha1.ExportedService{}, &v1alpha1.ExportedEndpoints{}, &v1alpha1.Endpoint{}} {
			r.Replace(of, nil)
		}
		r.Replace(&v1alpha1.ClusterSet{}, []client.Object{rosterOf("own", "east", "west")})
	}
	pass := func(d time.Duration) func(*Records) { return func(*Records) { time.Sleep(d); synctest.Wait() } }
	away := func(is bool) func(*Records) { return func(r *Records) { r.Away(is) } }
	const both = "id-east id-west"
	type step struct {
		do   func(*Records)
		want string
	}
	for name, steps := range map[string][]step{
		"a broker that is what it was": {
			{came(100), ""}, {leases(vouching("east", "90"), vouching("west", "99")), ""}, {list, both},
			{put(vouching("west", "100")), both}, {pass(answerLasts - 1), both}, {pass(1), "id-east"},
			{put(vouching("east", "101")), "id-east"}, {pass(answerLasts), ""}, {put(leaseOf("east", 2)), ""},
		},
		"the answers come before the lists": {
			{came(100), ""}, {leases(vouching("east", "100")), ""}, {put(vouching("west", "120")), ""}, {list, both}, {pass(answerLasts), ""},
		},
		"the version comes last":   {{leases(vouching("east", "90"), vouching("west", "100")), ""}, {list, both}, {came(100), both}, {pass(answerLasts), "id-east"}},
		"no answer":                {{came(100), ""}, {list, both}, {put(vouching("east", "nonsense")), both}, {pass(HoldFor - 1), both}, {pass(1), ""}},
		"an answer by list":        {{came(100), ""}, {list, both}, {leases(vouching("east", "100")), both}, {pass(answerLasts), "id-west"}},
		"while the broker is away": {{came(100), ""}, {list, both}, {away(true), both}, {pass(HoldFor), both}, {away(false), both}, {pass(HoldFor - 1), both}, {pass(1), ""}},
		"restored once more":       {{came(100), ""}, {list, both}, {came(50), both}, {put(vouching("east", "50")), both}, {pass(answerLasts), "id-west"}},
		"restored right after an answer": {{came(100), ""}, {list, both}, {put(vouching("east", "100")), both}, {came(101), both}, {pass(answerLasts), both},
			{put(vouching("east", "102")), both}, {pass(answerLasts), "id-west"}},
		"a patience that ends first": {{came(100), ""}, {list, both}, {pass(HoldFor - 1), both}, {put(vouching("east", "100")), both}, {pass(1), ""}, {pass(answerLasts), ""}},
		"whoever joins later":        {{came(100), ""}, {list, both}, {func(r *Records) { r.Put(rosterOf("own", "east", "west", "north")) }, both}},
		"whoever leaves":             {{came(100), ""}, {list, both}, {func(r *Records) { r.Put(rosterOf("own", "west")) }, "id-west"}},
		"nothing to lose":            {{came(100), ""}, {(*Records).Trust, ""}, {list, ""}},
		"nothing to lose, late":      {{came(100), ""}, {list, both}, {(*Records).Trust, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var said told
				r := NewRecords("own", said.poke)
				before := ""
				for i, step := range steps {
					said.take()
					step.do(r)
					view := r.View()
					got := strings.Join(view.Awaited, " ")
					if got != step.want {
						t.Errorf("step %d: %q are awaited, want %q", i+1, got, step.want)
					}
					if text := said.take(); got != before && !strings.Contains(text, "all") {
						t.Errorf("step %d changes who is awaited, and tells of %q", i+1, text)
					}
					if view.Synced && (r.Awaits() == r.came) != (got != "") {
						t.Errorf("step %d: %q are awaited, Awaits says %d", i+1, got, r.Awaits())
					}
					before = got
				}
			})
		})
	}
}
