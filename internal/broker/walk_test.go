package broker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// TestWalk is an importer's Records beside a broker that is there and away, is backed up and restored, and members that export,
// withdraw, die and come back, at random. After every step:
//
//   - what a member that is alive still exports, and the importer has seen, it has;
//   - what the importer saw withdrawn, it has not, until it is exported again;
//   - what it has of a record is never older than what it had;
//   - a member that renews its Lease is not silent, and one that is dead is, after the time for that under a watch that works;
//   - what it remembers of records that are gone is bounded by what there ever was.
//
// And whenever all has been quiet for a while it has exactly what the broker has.
func TestWalk(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { walk(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

const (
	// walkSteps are as many as bring about every pair of events many times over all seeds.
	walkSteps = 1500
	// walkRepairs is how long members take at most to notice that the broker is not as they left it, and to write what they miss.
	walkRepairs = 30 * time.Second
)

// store is what a broker holds.
type store struct {
	records map[string]*v1alpha1.ExportedService // by namespace/name
	leases  map[string]time.Time
}

func (s store) clone() store { return store{maps.Clone(s.records), maps.Clone(s.leases)} }

// member is a cluster that exports.
type member struct {
	name    string
	alive   bool
	wants   map[string]string // content, by namespace/name
	repairs time.Time         // when it looks at what the broker has; zero if it knows
	renewed time.Time         // really, by the test's clock
	died    time.Time
}

type walker struct {
	t       *testing.T
	random  *rand.Rand
	records *Records
	broker  store
	backups []store
	up      bool // the broker answers
	linked  bool // the importer reaches it
	since   time.Time
	members []*member
	log     []string

	seen map[string]int64 // versions that the importer had of records that were exported all the time since
	gone map[string]bool  // what the importer saw withdrawn, and nobody exported since
	told map[string]int64 // the highest versions that the importer was told of
	word map[string]bool  // what owners wrote last was no tombstone
}

func walk(t *testing.T, random *rand.Rand) {
	w := &walker{t: t, random: random, broker: store{map[string]*v1alpha1.ExportedService{}, map[string]time.Time{}}, up: true, word: map[string]bool{}}
	for _, name := range []string{"own", "east", "west"} {
		w.members = append(w.members, &member{name: name, alive: true, wants: map[string]string{}})
		w.renew(w.members[len(w.members)-1])
	}
	w.restart()
	for range walkSteps {
		w.step()
		w.check()
		if t.Failed() {
			t.Fatalf("the last steps:\n%s", strings.Join(w.log[max(0, len(w.log)-40):], "\n"))
		}
	}
}

func (w *walker) say(format string, args ...any) {
	w.log = append(w.log, time.Now().Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

func (w *walker) watching() bool { return w.up && w.linked }

func (w *walker) step() {
	m := w.members[w.random.IntN(len(w.members))]
	name := fmt.Sprintf("%s/s%d", m.name, w.random.IntN(4))
	switch n := w.random.IntN(100); {
	case n < 30:
		w.pass(time.Duration(w.random.IntN(20)+1) * time.Second)
	case n < 50:
		m.wants[name] = strconv.Itoa(w.random.IntN(1000))
		w.say("%s exports %s as %s", m.name, name, m.wants[name])
		w.export(m, name)
	case n < 65:
		delete(m.wants, name)
		delete(w.seen, name)
		w.say("%s withdraws %s", m.name, name)
		w.export(m, name)
	case n < 70:
		w.backups = append(w.backups, w.broker.clone())
		w.say("backup %d", len(w.backups))
	case n < 76:
		w.say("the importer loses the broker")
		w.lose()
		w.linked = false
	case n < 88:
		w.say("the importer reaches the broker")
		w.linked = true
		w.find()
	case n < 91:
		w.say("the broker goes")
		w.lose()
		w.up = false
	case n < 96 && !w.up:
		w.come()
	case n < 97 && m.name != "own":
		m.alive, m.died = !m.alive, time.Now()
		w.say("%s alive: %t", m.name, m.alive)
		if m.alive {
			m.repairs = time.Now()
		} else {
			w.forget(m)
		}
	case n < 98:
		w.say("the importer starts anew")
		w.restart()
	case n < 99:
		w.settle()
	}
}

// forget asks nothing any more of what a dead member exported: nobody can repair it.
func (w *walker) forget(m *member) {
	for name := range w.seen {
		if strings.HasPrefix(name, m.name+"/") {
			delete(w.seen, name)
		}
	}
	for name := range w.gone {
		if strings.HasPrefix(name, m.name+"/") {
			delete(w.gone, name)
		}
	}
}

// come brings the broker back, as it was or as a backup has it.
func (w *walker) come() {
	w.up = true
	if len(w.backups) > 0 && w.random.IntN(2) == 0 {
		n := w.random.IntN(len(w.backups))
		w.broker = w.backups[n].clone()
		w.say("the broker comes back as of backup %d", n+1)
	} else {
		w.say("the broker comes back")
	}
	for _, m := range w.members {
		m.repairs = time.Now().Add(time.Duration(w.random.Int64N(int64(walkRepairs))))
	}
	w.find()
}

// lose and find are the importer's side of a connection that breaks and is there again.
func (w *walker) lose() {
	if w.watching() {
		w.records.Away(true)
	}
}

func (w *walker) find() {
	if !w.watching() || !w.records.away {
		return
	}
	w.records.Away(false)
	w.list()
}

func (w *walker) list() {
	w.since = time.Now()
	var all, leases []client.Object
	for _, name := range slices.Sorted(maps.Keys(w.broker.records)) {
		record := w.broker.records[name]
		all = append(all, record)
		w.saw(name, record)
	}
	for namespace, at := range w.broker.leases {
		leases = append(leases, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.LeaseName},
			Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: at}}})
	}
	w.records.Replace(oneService, all)
	w.records.Replace(&coordinationv1.Lease{}, leases)
}

// restart is a new process of the importer.
func (w *walker) restart() {
	w.records = NewRecords("own", func(Change) {})
	w.records.Put(rosterOf("own", "east", "west"))
	w.records.away = true
	w.seen, w.gone, w.told = map[string]int64{}, map[string]bool{}, map[string]int64{}
	w.linked = true
	w.find()
}

// saw notes what the importer is told. A tombstone that is older than what it knows is a backup's, and no word of its owner's.
func (w *walker) saw(name string, record *v1alpha1.ExportedService) {
	m := w.owner(name)
	if _, wanted := m.wants[name]; record.Spec.Withdrawn && !wanted && m.alive && versionOf(record) >= w.told[name] {
		w.gone[name] = true
	}
	w.told[name] = max(w.told[name], versionOf(record))
}

func (w *walker) owner(name string) *member {
	namespace, _, _ := strings.Cut(name, "/")
	return w.members[slices.IndexFunc(w.members, func(m *member) bool { return m.name == namespace })]
}

// export has a member write one record as it should be, if it can and knows what the broker has.
func (w *walker) export(m *member, name string) {
	content, wanted := m.wants[name]
	if wanted {
		delete(w.gone, name)
	}
	if !w.up || !m.alive || !m.repairs.IsZero() {
		return
	}
	have := w.broker.records[name]
	switch {
	case have == nil && !wanted, have != nil && !wanted && have.Spec.Withdrawn && time.Since(WrittenAt(have)) < v1alpha1.TombstoneLives,
		have != nil && wanted && !have.Spec.Withdrawn && have.Spec.Addresses[0] == content:
		return
	case !wanted && have.Spec.Withdrawn:
		w.say("  %s deletes the tombstone %s", m.name, name)
		delete(w.broker.records, name)
		if w.watching() {
			w.records.Delete(have)
			w.gone[name] = true
		}
		return
	}
	previous := ""
	if have != nil {
		previous = have.Annotations[v1alpha1.AnnotationVersion]
	}
	record := service(name + " " + NextVersion(previous, time.Now()))
	record.Spec.Withdrawn, record.Spec.Addresses = !wanted, []string{content}
	w.say("  %s writes %s %s, withdrawn %t", m.name, name, record.Annotations[v1alpha1.AnnotationVersion], !wanted)
	w.broker.records[name], w.word[name] = record, wanted
	if w.watching() {
		w.records.Put(record)
		w.saw(name, record)
	}
}

func (w *walker) renew(m *member) {
	at := later(time.Now(), w.broker.leases[m.name].Add(time.Microsecond))
	m.renewed = time.Now()
	w.broker.leases[m.name] = at
	if w.records != nil && w.watching() {
		w.records.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: m.name, Name: v1alpha1.LeaseName},
			Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: at}}})
	}
}

// pass lets time pass, in which members renew and repair.
func (w *walker) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(time.Second)
		synctest.Wait()
		for _, m := range w.members {
			if !w.up || !m.alive {
				continue
			}
			due := !m.repairs.IsZero() && !time.Now().Before(m.repairs)
			if due || time.Since(m.renewed) >= v1alpha1.RenewEvery {
				w.renew(m)
			}
			if due {
				m.repairs = time.Time{}
				names := slices.Collect(maps.Keys(w.broker.records))
				names = append(names, slices.Collect(maps.Keys(m.wants))...)
				slices.Sort(names)
				for _, name := range slices.Compact(names) {
					if w.owner(name) == m {
						w.export(m, name)
					}
				}
			}
		}
	}
}

// settle brings all back, lets it rest, and compares.
func (w *walker) settle() {
	w.say("rest")
	if !w.up {
		w.come()
	}
	w.linked = true
	w.find()
	w.pass(walkRepairs + HoldFor + v1alpha1.MinExpireAfter + 3*v1alpha1.RenewEvery)
	want := map[string]string{}
	for name, record := range w.broker.records {
		if !record.Spec.Withdrawn && w.owner(name).alive {
			want[name] = record.Spec.Addresses[0]
		}
	}
	view := w.records.View()
	got := map[string]string{}
	for _, record := range view.Services {
		got[client.ObjectKeyFromObject(record).String()] = record.Spec.Addresses[0]
	}
	if !maps.Equal(got, want) || view.Held > 0 {
		w.t.Errorf("at rest: %v, %d held; want %v", got, view.Held, want)
	}
	for _, m := range w.members {
		for name, content := range m.wants {
			if m.alive && got[name] != content {
				w.t.Errorf("at rest: %s is %q, and exported as %q", name, got[name], content)
			}
		}
	}
}

func (w *walker) check() {
	synctest.Wait()
	view := w.records.View()
	has := map[string]*v1alpha1.ExportedService{}
	for _, record := range view.Services {
		has[client.ObjectKeyFromObject(record).String()] = record
	}
	for name, version := range w.seen {
		switch {
		case has[name] == nil:
			w.t.Errorf("%s is exported, was known, and is not there", name)
		case versionOf(has[name]) < version && w.owner(name).name != "own":
			w.t.Errorf("%s fell from version %d to %d", name, version, versionOf(has[name]))
		}
	}
	for name := range w.gone {
		if has[name] != nil && w.owner(name).name != "own" {
			w.t.Errorf("%s was withdrawn, and is there", name)
		}
	}
	for name, record := range has {
		if m := w.owner(name); m.alive && m.repairs.IsZero() && m.name != "own" && m.wants[name] != "" && w.word[name] {
			w.seen[name] = versionOf(record)
		}
	}
	for _, m := range w.members {
		expired := slices.Contains(view.Expired, "id-"+m.name)
		switch {
		case expired && w.watching() && m.repairs.IsZero() && (m.alive || time.Since(m.renewed) <= v1alpha1.MinExpireAfter):
			w.t.Errorf("%s renewed %v ago, and is silent", m.name, time.Since(m.renewed))
		}
		blind := m.died
		if w.since.After(blind) {
			blind = w.since
		}
		if patience := v1alpha1.MinExpireAfter + 2*v1alpha1.RenewEvery; !expired && !m.alive && w.watching() && time.Since(blind) > patience && w.broker.leases[m.name] != (time.Time{}) {
			w.t.Errorf("%s has been dead for %v, under a watch of %v, and is not silent", m.name, time.Since(m.died), time.Since(w.since))
		}
	}
	if n := len(w.records.records); n > 1+4*len(w.members) {
		w.t.Errorf("%d names are remembered", n)
	}
}
