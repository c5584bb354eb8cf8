package clusterset

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
)

// Policy says which clusters serve a service. All but the weights is the word of the oldest export that has one; a weight is
// each cluster's own.
type Policy struct {
	// Affinity is v1alpha1.AffinityLocal, AffinityNone or AffinityRemote.
	Affinity string
	// Prefer is clusters in the order in which they are to serve. Those that are not in it come after, all alike.
	Prefer []string
	// MinLocalPercent is the least share of ready local backends at which they serve alone, 0 to 100.
	MinLocalPercent int32
	// Balance is v1alpha1.BalanceIP, BalanceDNS or, for what the ClusterSet says, "".
	Balance string
	// Weights of the clusters that set one, 0 to 65535; all others have weight 1.
	Weights map[string]int32
}

// maxWeight is the largest weight of an SRV record (RFC 2782).
const maxWeight = math.MaxUint16

// maxPrefer bounds a list of preferred clusters: far more than clustersets have members.
const maxPrefer = 100

// policyOf is the policy of contributions, the oldest first: each part is the word of the oldest export that has one.
func policyOf(byAge []Contribution) Policy {
	var e v1alpha1.ExportedServiceSpec
	p := Policy{}
	for _, c := range byAge {
		e.Affinity = cmp.Or(e.Affinity, c.Export.Affinity)
		e.Balance = cmp.Or(e.Balance, c.Export.Balance)
		e.MinLocalPercent = cmp.Or(e.MinLocalPercent, c.Export.MinLocalPercent)
		if len(e.Prefer) == 0 {
			e.Prefer = c.Export.Prefer
		}
		if c.Export.Weight != nil {
			if p.Weights == nil {
				p.Weights = map[string]int32{}
			}
			p.Weights[c.Cluster] = *c.Export.Weight
		}
	}
	p.Affinity, p.Prefer, p.Balance = EffectiveAffinity(e), e.Prefer, e.Balance
	if e.MinLocalPercent != nil {
		p.MinLocalPercent = *e.MinLocalPercent
	}
	return p
}

// EffectiveAffinity is local where nothing is said, an order of clusters or not: naming who takes over must not move the
// traffic of clusters that serve themselves.
func EffectiveAffinity(e v1alpha1.ExportedServiceSpec) string {
	return cmp.Or(e.Affinity, v1alpha1.AffinityLocal)
}

// policyAnnotations are those by which an export, and the ServiceImport made of it, say a policy; without the weight, which
// is one cluster's.
var policyAnnotations = []string{
	v1alpha1.AnnotationAffinity, v1alpha1.AnnotationPrefer, v1alpha1.AnnotationMinLocalPercent, v1alpha1.AnnotationBalance,
}

// PolicyAnnotations are the annotations of a ServiceExport that ReadPolicy reads.
func PolicyAnnotations() []string {
	return append(slices.Clone(policyAnnotations), v1alpha1.AnnotationWeight)
}

// Annotate makes the annotations say this policy, weights apart, and nothing where it is the default. ReadPolicy reads them
// back: an agent that starts while the broker is away has nothing else to know the other clusters' word from.
func (p Policy) Annotate(annotations map[string]string) map[string]string {
	annotations = maps.Clone(annotations)
	for _, key := range policyAnnotations {
		delete(annotations, key) // an exported annotation of that name is not the policy
	}
	put := func(key, value string) {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[key] = value
	}
	if p.Affinity != v1alpha1.AffinityLocal {
		put(v1alpha1.AnnotationAffinity, p.Affinity)
	}
	if len(p.Prefer) > 0 {
		put(v1alpha1.AnnotationPrefer, strings.Join(p.Prefer, ","))
	}
	if p.MinLocalPercent > 0 {
		put(v1alpha1.AnnotationMinLocalPercent, strconv.Itoa(int(p.MinLocalPercent)))
	}
	if p.Balance != "" {
		put(v1alpha1.AnnotationBalance, p.Balance)
	}
	return annotations
}

// ReadPolicy reads the annotations of a ServiceExport into its export. An annotation that cannot be read counts as not
// there; what is wrong with it is said in words, one sentence an annotation.
func ReadPolicy(annotations map[string]string, e *v1alpha1.ExportedServiceSpec) (problems []string) {
	read := func(key string, take func(value string) error) {
		if value, ok := annotations[key]; ok {
			if err := take(strings.TrimSpace(value)); err != nil {
				problems = append(problems, fmt.Sprintf("%s is ignored: %v", key, err))
			}
		}
	}
	oneOf := func(into *string, allowed ...string) func(string) error {
		return func(value string) error {
			if !slices.Contains(allowed, value) {
				return fmt.Errorf("%s is not one of %s", quoted(value), strings.Join(allowed, ", "))
			}
			*into = value
			return nil
		}
	}
	number := func(into **int32, most int32) func(string) error {
		return func(value string) error {
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n < 0 || n > int64(most) {
				return fmt.Errorf("%s is not a whole number from 0 to %d", quoted(value), most)
			}
			small := int32(n)
			*into = &small
			return nil
		}
	}
	read(v1alpha1.AnnotationAffinity, oneOf(&e.Affinity, v1alpha1.AffinityLocal, v1alpha1.AffinityNone, v1alpha1.AffinityRemote))
	read(v1alpha1.AnnotationWeight, number(&e.Weight, maxWeight))
	read(v1alpha1.AnnotationPrefer, func(value string) error {
		var clusters []string
		for id := range strings.SplitSeq(value, ",") {
			clusters = append(clusters, strings.TrimSpace(id))
		}
		if err := checkPrefer(clusters); err != nil {
			return err
		}
		e.Prefer = clusters
		return nil
	})
	read(v1alpha1.AnnotationMinLocalPercent, number(&e.MinLocalPercent, 100))
	read(v1alpha1.AnnotationBalance, oneOf(&e.Balance, v1alpha1.BalanceIP, v1alpha1.BalanceDNS))
	return problems
}

// quoted is a user's value as a message shows it: however long it is.
func quoted(value string) string {
	const most = 60
	if len(value) > most {
		return fmt.Sprintf("%q...", value[:most])
	}
	return fmt.Sprintf("%q", value)
}

func checkPrefer(clusters []string) error {
	if len(clusters) > maxPrefer {
		return fmt.Errorf("%d clusters, at most %d", len(clusters), maxPrefer)
	}
	seen := sets.New[string]()
	for _, id := range clusters {
		if err := CheckClusterID(id); err != nil {
			return fmt.Errorf("%s is not a cluster ID: one or two DNS labels", quoted(id))
		}
		if seen.Has(id) {
			return fmt.Errorf("cluster %s comes twice", id)
		}
		seen.Insert(id)
	}
	return nil
}

// checkPolicy checks what a record says of a policy.
func (c *checker) checkPolicy(e *v1alpha1.ExportedServiceSpec) {
	c.oneOf("affinity", e.Affinity, "", v1alpha1.AffinityLocal, v1alpha1.AffinityNone, v1alpha1.AffinityRemote)
	c.oneOf("balance", e.Balance, "", v1alpha1.BalanceIP, v1alpha1.BalanceDNS)
	if w := e.Weight; w != nil {
		c.that(*w >= 0 && *w <= maxWeight, "weight is %d", *w)
	}
	if n := e.MinLocalPercent; n != nil {
		c.that(*n >= 0 && *n <= 100, "minLocalPercent is %d", *n)
	}
	if err := checkPrefer(e.Prefer); err != nil {
		c.that(false, "prefer: %w", err)
	}
}

// policyConflict compares what exports say of a policy. One that says nothing of a part agrees with everybody: these are
// wishes beside the Service, and no property of it that every export has.
func policyConflict(byAge []Contribution) (Conflict, bool) {
	var messages []string
	check := func(field string, show func(v1alpha1.ExportedServiceSpec) string) {
		var winner, word string
		var losers []string
		for _, c := range byAge {
			switch value := show(c.Export); {
			case value == "":
			case winner == "":
				winner, word = c.Cluster, value
			case value != word:
				losers = append(losers, fmt.Sprintf("%s (%s)", c.Cluster, value))
			}
		}
		if len(losers) > 0 {
			messages = append(messages, fmt.Sprintf("%s: %s, the first to export that has one, has %s; different in %s", field, winner, word, strings.Join(losers, ", ")))
		}
	}
	check(v1alpha1.AnnotationAffinity, func(e v1alpha1.ExportedServiceSpec) string { return e.Affinity })
	check(v1alpha1.AnnotationPrefer, func(e v1alpha1.ExportedServiceSpec) string { return strings.Join(e.Prefer, " ") })
	check(v1alpha1.AnnotationMinLocalPercent, func(e v1alpha1.ExportedServiceSpec) string {
		if e.MinLocalPercent == nil {
			return ""
		}
		return strconv.Itoa(int(*e.MinLocalPercent))
	})
	check(v1alpha1.AnnotationBalance, func(e v1alpha1.ExportedServiceSpec) string { return e.Balance })
	return Conflict{ReasonPolicyConflict, strings.Join(messages, ". ")}, len(messages) > 0
}
