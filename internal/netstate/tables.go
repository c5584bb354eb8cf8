package netstate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// tableNames are the tables that may hold chains of ours.
var tableNames = [...]string{"nat", "mangle", "filter"}

// builtins of those tables that may hold jumps of ours.
var builtins = map[string][]string{
	"nat":    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"filter": {"INPUT", "FORWARD", "OUTPUT"},
}

// Backend is one of the two ways in which iptables keeps rules. They do not see each other's, so ours must be where
// kube-proxy's and the CNI's are: only there does "first" mean anything.
type Backend string

// The back ends.
const (
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Tables edits chains through iptables and ip6tables of one back end. Make it with NewTables; it is for one goroutine.
type Tables struct {
	Backend Backend
	// Trust is for how long chains and jumps that were found, or made, as they are wanted are taken to be so still: each look starts some
	// twenty processes, and what somebody else does to them no watch tells of. The zero value looks each time.
	Trust time.Duration

	prefix string
	v4, v6 *iptables.IPTables // v6 is nil where the kernel has no IPv6
	swept  bool               // jumps that a process before us has left have been looked for

	whole  bool      // all that was wanted last is there
	made   string    // that in text, once nothing else is there either
	madeAt time.Time // and when that was seen; zero after a failure
}

// trusted says that there is no need to look.
func (t *Tables) trusted(want State) bool {
	return !t.madeAt.IsZero() && time.Since(t.madeAt) < t.Trust && t.made == chainsText(want)
}

func chainsText(want State) string { return fmt.Sprint(want.Chains, want.Jumps) }

// NewTables finds the programs of the back end. ChainPrefix begins the name of every chain of ours.
func NewTables(backend Backend, chainPrefix string) (*Tables, error) {
	t := &Tables{Backend: backend, prefix: chainPrefix}
	var err error
	if t.v4, err = iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Path("iptables-"+string(backend)), iptables.Timeout(10)); err != nil {
		return nil, fmt.Errorf("iptables-%s: %w", backend, err)
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return t, nil
	}
	if t.v6, err = iptables.New(iptables.IPFamily(iptables.ProtocolIPv6), iptables.Path("ip6tables-"+string(backend)), iptables.Timeout(10)); err != nil {
		return nil, fmt.Errorf("ip6tables-%s: %w", backend, err)
	}
	return t, nil
}

// Detect finds the back end that holds the node's chains: kubelet's hint, made for this purpose, or kube-proxy's chains.
// Without any it is nft, which every current distribution means by "iptables". Legacy tables are only looked into where
// some process has made them: looking would make them.
func Detect() Backend {
	for _, backend := range []Backend{NFT, Legacy} {
		if backend == Legacy && !legacyInUse() {
			continue
		}
		t, err := NewTables(backend, "")
		if err != nil {
			continue
		}
		for _, table := range []string{"mangle", "nat"} {
			chains, err := t.v4.ListChains(table)
			if err == nil && slices.ContainsFunc(chains, func(c string) bool { return strings.HasPrefix(c, "KUBE-") }) {
				return backend
			}
		}
	}
	return NFT
}

func legacyInUse() bool {
	names, err := os.ReadFile("/proc/net/ip_tables_names")
	return err == nil && len(names) > 0
}

// Other is the back end that this one is not, where rules of ours may be left from before a change; nil where there
// cannot be any.
func (t *Tables) Other() *Tables {
	other := NFT
	if t.Backend == NFT {
		other = Legacy
		if !legacyInUse() {
			return nil
		}
	}
	tables, err := NewTables(other, t.prefix)
	if err != nil {
		return nil
	}
	return tables
}

// Sweep removes every chain and jump of ours.
func (t *Tables) Sweep(ctx context.Context) ([]string, error) {
	return t.removeChains(ctx, State{})
}

func (t *Tables) families() map[bool]*iptables.IPTables {
	families := map[bool]*iptables.IPTables{false: t.v4}
	if t.v6 != nil {
		families[true] = t.v6
	}
	return families
}

// chain lists a chain's rules, without "-A CHAIN ".
func list(ipt *iptables.IPTables, table, chain string) ([]string, error) {
	lines, err := ipt.List(table, chain)
	if err != nil {
		return nil, fmt.Errorf("list %s %s: %w", table, chain, err)
	}
	var rules []string
	for _, line := range lines {
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

func (t *Tables) makeChains(_ context.Context, want State) (changes []string, err error) {
	if t.trusted(want) {
		return nil, nil
	}
	t.madeAt = time.Time{}
	var errs []error
	for v6, ipt := range t.families() {
		for _, table := range tableNames {
			done, err := t.makeTable(ipt, v6, table, want)
			changes, errs = append(changes, done...), append(errs, err)
		}
	}
	err = errors.Join(errs...)
	t.whole = err == nil
	return changes, err
}

func (t *Tables) makeTable(ipt *iptables.IPTables, v6 bool, table string, want State) (changes []string, err error) {
	ours := func(v bool, name string) bool { return v == v6 && name == table }
	if !slices.ContainsFunc(want.Chains, func(c Chain) bool { return ours(c.IPv6, c.Table) }) {
		return nil, nil
	}
	chains, err := ipt.ListChains(table)
	if err != nil {
		return nil, fmt.Errorf("list chains of %s: %w", table, err)
	}
	var errs []error
	for _, chain := range want.Chains {
		if !ours(chain.IPv6, chain.Table) {
			continue
		}
		var have []string
		if slices.Contains(chains, chain.Name) {
			if have, err = list(ipt, table, chain.Name); err != nil {
				errs = append(errs, err)
				continue
			}
		} else if err := ipt.NewChain(table, chain.Name); err != nil {
			errs = append(errs, fmt.Errorf("make chain %s %s: %w", table, chain.Name, err))
			continue
		} else {
			changes = append(changes, fmt.Sprintf("+ %s -t %s -N %s", iptablesName(v6), table, chain.Name))
		}
		for _, edit := range edits(have, chain.Rules) {
			if edit.insert {
				err = ipt.Insert(table, chain.Name, edit.position, strings.Fields(edit.rule)...)
			} else {
				err = ipt.DeleteById(table, chain.Name, edit.position)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("edit chain %s %s, rule %s: %w", table, chain.Name, edit.rule, err))
				break
			}
			changes = append(changes, fmt.Sprintf("%s %s -t %s -A %s %s", edit.sign(), iptablesName(v6), table, chain.Name, edit.rule))
		}
	}
	for _, jump := range want.Jumps {
		if !ours(jump.IPv6, jump.Table) {
			continue
		}
		done, err := t.makeJump(ipt, jump)
		changes, errs = append(changes, done...), append(errs, err)
	}
	return changes, errors.Join(errs...)
}

// makeJump puts the jump into its place. Rules of others come and go in that chain at any time, so ours is only ever
// removed by what it says, never by its number: between two calls, the number may be somebody else's.
func (t *Tables) makeJump(ipt *iptables.IPTables, jump Jump) ([]string, error) {
	rules, err := list(ipt, jump.Table, jump.Builtin)
	if err != nil {
		return nil, err
	}
	spec := "-j " + jump.Chain
	count := 0
	for _, rule := range rules {
		if rule == spec {
			count++
		}
	}
	if count == 1 && (jump.Last || rules[0] == spec) {
		return nil, nil
	}
	for range count {
		if err := ipt.DeleteIfExists(jump.Table, jump.Builtin, "-j", jump.Chain); err != nil {
			return nil, fmt.Errorf("remove jump %s %s %s: %w", jump.Table, jump.Builtin, spec, err)
		}
	}
	if jump.Last {
		err = ipt.Append(jump.Table, jump.Builtin, "-j", jump.Chain)
	} else {
		err = ipt.Insert(jump.Table, jump.Builtin, 1, "-j", jump.Chain)
	}
	if err != nil {
		return nil, fmt.Errorf("add jump %s %s %s: %w", jump.Table, jump.Builtin, spec, err)
	}
	return []string{fmt.Sprintf("+ %s -t %s -A %s %s", iptablesName(jump.IPv6), jump.Table, jump.Builtin, spec)}, nil
}

func (t *Tables) removeChains(_ context.Context, want State) (changes []string, err error) {
	if t.trusted(want) {
		return nil, nil
	}
	var errs []error
	for v6, ipt := range t.families() {
		for _, table := range tableNames {
			done, err := t.removeTable(ipt, v6, table, want)
			changes, errs = append(changes, done...), append(errs, err)
		}
	}
	err = errors.Join(errs...)
	t.swept = t.swept || err == nil
	if err == nil && t.whole {
		t.made, t.madeAt = chainsText(want), time.Now()
	}
	return changes, err
}

func (t *Tables) removeTable(ipt *iptables.IPTables, v6 bool, table string, want State) (changes []string, err error) {
	chains, err := ipt.ListChains(table)
	if err != nil {
		return nil, fmt.Errorf("list chains of %s: %w", table, err)
	}
	chains = slices.DeleteFunc(chains, func(name string) bool {
		return !strings.HasPrefix(name, t.prefix) || name == t.memory()
	})
	unwanted := func(name string) bool {
		return !slices.ContainsFunc(want.Chains, func(c Chain) bool { return c.IPv6 == v6 && c.Table == table && c.Name == name })
	}
	// A jump cannot outlive its chain; and a stray one, into a chain that is wanted, can only be of another version of us,
	// so it is looked for once. Each look is a process that is started.
	if t.swept && !slices.ContainsFunc(chains, unwanted) || len(chains) == 0 {
		return nil, nil
	}
	var errs []error
	for _, builtin := range builtins[table] {
		rules, err := list(ipt, table, builtin)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, rule := range rules {
			target, ok := strings.CutPrefix(rule, "-j ")
			if !ok || !strings.HasPrefix(target, t.prefix) || slices.ContainsFunc(want.Jumps, func(j Jump) bool {
				return j.IPv6 == v6 && j.Table == table && j.Builtin == builtin && j.Chain == target
			}) {
				continue
			}
			errs = append(errs, ipt.DeleteIfExists(table, builtin, "-j", target))
			changes = append(changes, fmt.Sprintf("- %s -t %s -A %s %s", iptablesName(v6), table, builtin, rule))
		}
	}
	for _, name := range chains {
		if !unwanted(name) {
			continue
		}
		errs = append(errs, ipt.ClearAndDeleteChain(table, name))
		changes = append(changes, fmt.Sprintf("- %s -t %s -N %s", iptablesName(v6), table, name))
	}
	return changes, errors.Join(errs...)
}

// edit is one step from a list of rules to another, with positions as they are at that step, from 1.
type edit struct {
	insert   bool
	position int
	rule     string
}

func (e edit) sign() string {
	if e.insert {
		return "+"
	}
	return "-"
}

// edits leads from one list to the other and leaves in place what is in both, so that a connection which begins meanwhile
// meets the rules that stay.
func edits(have, want []string) (steps []edit) {
	have = slices.Clone(have)
	i := 0
	for i < len(want) {
		switch {
		case i < len(have) && have[i] == want[i]:
			i++
		case i < len(have) && !slices.Contains(want[i:], have[i]):
			steps = append(steps, edit{insert: false, position: i + 1, rule: have[i]})
			have = slices.Delete(have, i, i+1)
		default:
			steps = append(steps, edit{insert: true, position: i + 1, rule: want[i]})
			have = slices.Insert(have, i, want[i])
			i++
		}
	}
	for len(have) > len(want) {
		last := len(have) - 1
		steps = append(steps, edit{insert: false, position: last + 1, rule: have[last]})
		have = have[:last]
	}
	return steps
}

// ---- what sysctls were before

// memory is the chain of the IPv4 filter table that remembers; nothing jumps to it.
func (t *Tables) memory() string { return t.prefix + "SYSCTL" }

var memorized = regexp.MustCompile(`--comment "?rp_filter/([^" ]+)/([0-9]+)"?`)

// Remembered is what links' rp_filter was before we set it, by link.
func (t *Tables) Remembered() (map[string]int, error) {
	chains, err := t.v4.ListChains("filter")
	if err != nil {
		return nil, fmt.Errorf("list chains of filter: %w", err)
	}
	before := map[string]int{}
	if !slices.Contains(chains, t.memory()) {
		return before, nil
	}
	rules, err := list(t.v4, "filter", t.memory())
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		if m := memorized.FindStringSubmatch(rule); m != nil {
			before[m[1]], err = strconv.Atoi(m[2])
			if err != nil {
				return nil, fmt.Errorf("chain %s: %w", t.memory(), err)
			}
		}
	}
	if len(before) == 0 {
		return before, t.v4.ClearAndDeleteChain("filter", t.memory())
	}
	return before, nil
}

func memo(link string, value int) []string {
	return []string{"-m", "comment", "--comment", fmt.Sprintf("rp_filter/%s/%d", link, value)}
}

func (t *Tables) remember(link string, value int) error {
	if exists, err := t.v4.ChainExists("filter", t.memory()); err != nil {
		return fmt.Errorf("chain %s: %w", t.memory(), err)
	} else if !exists {
		if err := t.v4.NewChain("filter", t.memory()); err != nil {
			return fmt.Errorf("make chain %s: %w", t.memory(), err)
		}
	}
	if err := t.v4.AppendUnique("filter", t.memory(), memo(link, value)...); err != nil {
		return fmt.Errorf("remember rp_filter of %s: %w", link, err)
	}
	return nil
}

func (t *Tables) forget(link string, value int) error {
	if err := t.v4.DeleteIfExists("filter", t.memory(), memo(link, value)...); err != nil {
		return fmt.Errorf("forget rp_filter of %s: %w", link, err)
	}
	rules, err := list(t.v4, "filter", t.memory())
	if err != nil || len(rules) > 0 {
		return err
	}
	if err := t.v4.DeleteChain("filter", t.memory()); err != nil {
		return fmt.Errorf("remove chain %s: %w", t.memory(), err)
	}
	return nil
}
