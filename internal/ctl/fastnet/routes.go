package fastnet

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/fastnet-io/fastnet/api/v1alpha1"
	"github.com/fastnet-io/fastnet/internal/ctl"
	"github.com/fastnet-io/fastnet/internal/routeview"
)

// How nodes are asked: so many at a time, and each has so long.
const (
	askedAtOnce = 16
	nodeAnswers = 5 * time.Second
)

// routeRow is a way from a node to a cluster.
type routeRow struct {
	Node string `json:"node"`
	routeview.Way
}

const routeHeader = "NODE\tCLUSTER\tFAMILY\tGATEWAY\tPATH\tUSED\tSTATE\tRTT\tMTU\tSINCE"

func (r routeRow) cells(now time.Time) []string {
	path, used, state, rtt, mtu := r.Path, "no", r.State, "-", "-"
	if r.Endpoint != "" {
		path += " " + r.Endpoint
	}
	if r.Used {
		used = "yes"
	}
	if r.State == "up" && !r.Live {
		state = "no cable"
	}
	if r.Draining {
		state += " (draining)"
	}
	if r.RTT > 0 && r.State == "up" { // of one that is down it is from before
		rtt = strconv.FormatFloat(1000*r.RTT, 'f', 1, 64) + "ms"
	}
	if r.MTU > 0 {
		mtu = strconv.Itoa(r.MTU)
	}
	return []string{r.Node, r.ClusterID, r.Family, r.Gateway, path, used, state, rtt, mtu, ctl.Age(metav1.NewTime(r.Since), now)}
}

// routes asks the route agent of every node, through the API server: nobody else knows what a node has decided, and no object
// holds it, since nodes decide many times a second.
func (c *cluster) routes(ctx context.Context) ([]routeRow, []string, error) {
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(v1alpha1.Namespace), client.MatchingLabels{"app.kubernetes.io/name": "fastnet-routeagent"}); err != nil {
		return nil, nil, ctl.Explain("list the route agents", err)
	}
	api, err := v1.NewForConfig(c.config)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the route agents: %w", err)
	}
	rows, problems := askNodes(ctx, pods.Items, func(ctx context.Context, pod, port string) ([]byte, error) {
		return api.Pods(v1alpha1.Namespace).ProxyGet("http", pod, port, routeview.Page, nil).DoRaw(ctx)
	})
	return rows, problems, nil
}

// askNodes gathers the ways of all nodes, sorted. A node that does not answer is a problem.
func askNodes(ctx context.Context, pods []corev1.Pod, get func(ctx context.Context, pod, port string) ([]byte, error)) (rows []routeRow, problems []string) {
	var mu sync.Mutex
	var asking sync.WaitGroup
	places := make(chan struct{}, askedAtOnce)
	for _, pod := range pods {
		asking.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, nodeAnswers)
			defer cancel()
			node, err := askNode(ctx, pod, get)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s: its route agent %s does not answer: %v", pod.Spec.NodeName, pod.Name, err))
			}
			for _, way := range node.Ways {
				rows = append(rows, routeRow{pod.Spec.NodeName, way})
			}
			for _, problem := range node.Problems {
				problems = append(problems, pod.Spec.NodeName+": "+problem)
			}
		})
	}
	asking.Wait()
	slices.SortFunc(rows, func(a, b routeRow) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ClusterID, b.ClusterID), cmp.Compare(a.Family, b.Family), cmp.Compare(a.Gateway, b.Gateway),
			cmp.Compare(a.Endpoint, b.Endpoint))
	})
	slices.Sort(problems)
	return rows, problems
}

func askNode(ctx context.Context, pod corev1.Pod, get func(ctx context.Context, pod, port string) ([]byte, error)) (node routeview.Node, err error) {
	port := "9472"
	for _, container := range pod.Spec.Containers {
		for _, p := range container.Ports {
			if p.Name == "http" {
				port = strconv.Itoa(int(p.ContainerPort))
			}
		}
	}
	text, err := get(ctx, pod.Name, port)
	if err == nil {
		err = json.Unmarshal(text, &node)
	}
	return node, err
}
