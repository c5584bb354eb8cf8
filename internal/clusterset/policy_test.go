package clusterset

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

func TestReadPolicy(t *testing.T) {
	type spec = v1alpha1.ExportedServiceSpec
	for _, test := range []struct {
		annotation, value string
		want              spec
		problem           string
	}{
		{"affinity", "remote", spec{Affinity: "remote"}, ""},
		{"affinity", " none ", spec{Affinity: "none"}, ""},
		{"affinity", "sideways", spec{}, `fastnet.dev/affinity is ignored: "sideways" is not one of local, none, remote`},
		{"affinity", "", spec{}, `fastnet.dev/affinity is ignored: "" is not one of`},
		{"affinity", "Local", spec{}, `"Local" is not one of`},
		{"weight", "0", spec{Weight: ptr(int32(0))}, ""},
		{"weight", "65535", spec{Weight: ptr(int32(65535))}, ""},
		{"weight", "65536", spec{}, `fastnet.dev/weight is ignored: "65536" is not a whole number from 0 to 65535`},
		{"weight", "-1", spec{}, `"-1" is not a whole number`},
		{"weight", "1.5", spec{}, `"1.5" is not a whole number`},
		{"weight", strings.Repeat("9", 100), spec{}, `99"... is not a whole number`},
		{"prefer", "east, eu.west", spec{Prefer: []string{"east", "eu.west"}}, ""},
		{"prefer", "east,,west", spec{}, `fastnet.dev/prefer is ignored: "" is not a cluster ID`},
		{"prefer", "East", spec{}, `"East" is not a cluster ID`},
		{"prefer", "a,b,a", spec{}, `cluster a comes twice`},
		{"prefer", strings.Repeat("a,", 200) + "b", spec{}, `201 clusters, at most 100`},
		{"min-local-percent", "100", spec{MinLocalPercent: ptr(int32(100))}, ""},
		{"min-local-percent", "101", spec{}, `"101" is not a whole number from 0 to 100`},
		{"min-local-percent", "50%", spec{}, `"50%" is not a whole number`},
		{"balance", "dns", spec{Balance: "dns"}, ""},
		{"balance", "DNS", spec{}, `"DNS" is not one of ip, dns`},
	} {
		t.Run(test.annotation+" "+test.value, func(t *testing.T) {
			var got spec
			problems := ReadPolicy(map[string]string{"fastnet.dev/" + test.annotation: test.value}, &got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if text := strings.Join(problems, "; "); !strings.Contains(text, test.problem) || test.problem == "" && text != "" {
				t.Errorf("told %q, want %q", text, test.problem)
			}
			c := exported("x", 0, func(e *spec) {
				e.Affinity, e.Weight, e.Prefer, e.MinLocalPercent, e.Balance = got.Affinity, got.Weight, got.Prefer, got.MinLocalPercent, got.Balance
			})
			if err := CheckExport(&c.Export); err != nil {
				t.Errorf("what was read does not count as a record: %v", err)
			}
		})
	}
}

// One wrong annotation leaves the others as they are.
func TestWrongAnnotationsStandAlone(t *testing.T) {
	var got v1alpha1.ExportedServiceSpec
	problems := ReadPolicy(map[string]string{
		v1alpha1.AnnotationAffinity: "x", v1alpha1.AnnotationWeight: "7", v1alpha1.AnnotationPrefer: "_", v1alpha1.AnnotationMinLocalPercent: "30",
	}, &got)
	if len(problems) != 2 || *got.Weight != 7 || *got.MinLocalPercent != 30 || got.Affinity != "" || got.Prefer != nil {
		t.Errorf("read %+v, told %q", got, problems)
	}
}

// A policy that is written on a ServiceImport is read back as it was, whatever was exported beside it.
func TestPolicySurvivesOnAnImport(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		want, _ := randomPolicy(r)
		want.Weights, want.Balance = nil, []string{"", "ip", "dns"}[r.IntN(3)]
		exported := map[string]string{"a": "b", v1alpha1.AnnotationAffinity: "remote", v1alpha1.AnnotationPrefer: "x", v1alpha1.AnnotationBalance: "dns"}
		annotations := want.Annotate(exported)
		if diff := cmp.Diff(want, knownPolicy(annotations), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d: %v\n%s", seed, annotations, diff)
		}
		if annotations["a"] != "b" || exported[v1alpha1.AnnotationPrefer] != "x" {
			t.Fatalf("seed %d: other annotations: %v, given %v", seed, annotations, exported)
		}
	}
	if got := (Policy{Affinity: v1alpha1.AffinityLocal}).Annotate(nil); got != nil {
		t.Errorf("the default says %v", got)
	}
}

// The oldest export that has a word wins, part by part; each cluster's weight is its own.
func TestMergeOfPolicies(t *testing.T) {
	type spec = v1alpha1.ExportedServiceSpec
	young := exported("a", 2, func(e *spec) { e.Affinity, e.Balance, e.Weight = "none", "dns", ptr(int32(0)) })
	old := exported("b", 1, func(e *spec) { e.Prefer, e.Weight = []string{"a"}, ptr(int32(3)) })
	want := Policy{Affinity: "none", Prefer: []string{"a"}, Balance: "dns", Weights: map[string]int32{"a": 0, "b": 3}}
	service := merged(t, young, old)
	if diff := cmp.Diff(want, service.Policy); diff != "" || len(service.Conflicts) > 0 {
		t.Errorf("conflicts %v\n%s", service.Conflicts, diff)
	}
	old.Export.Affinity, old.Export.MinLocalPercent = "local", ptr(int32(0))
	young.Export.MinLocalPercent = ptr(int32(9))
	want.Affinity = "local"
	service = merged(t, young, exported("c", 3, func(e *spec) { e.Affinity = "remote" }), old, exported("d", 0))
	if diff := cmp.Diff(want, service.Policy); diff != "" {
		t.Error(diff)
	}
	const message = "fastnet.dev/affinity: b, the first to export that has one, has local; different in a (none), c (remote). " +
		"fastnet.dev/min-local-percent: b, the first to export that has one, has 0; different in a (9)"
	if got := reasons(service); got != "PolicyConflict" || service.Conflicts[0].Message != message {
		t.Errorf("conflicts %s: %v", got, service.Conflicts)
	}
}

// knownPolicy is the policy that Annotate wrote.
func knownPolicy(annotations map[string]string) Policy {
	var e v1alpha1.ExportedServiceSpec
	ReadPolicy(annotations, &e)
	e.Weight = nil
	return policyOf([]Contribution{{Export: e}})
}
