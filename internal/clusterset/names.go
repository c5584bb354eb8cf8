package clusterset

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
)

// maxName is the longest name of an object whose name is a DNS subdomain.
const maxName = 253

// hash is the first 10 characters of the lower-case unpadded base32hex of SHA-256: 50 bits, and a valid DNS label.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))[:10]
}

// DerivedName is the name of the derived Service of an import.
func DerivedName(key Key) string {
	return "derived-" + hash(key.Namespace+"/"+key.Name)
}

// ExportName is the name of a cluster's ExportedService.
func ExportName(cluster string, key Key) string {
	return cluster + "." + key.Name + "." + key.Namespace
}

// BackendsName is the name of the ExportedEndpoints made from part (0 and up) of an EndpointSlice. Names that would be too
// long end in a hash instead.
func BackendsName(cluster, slice, namespace string, part int) string {
	suffix := "." + namespace
	if part > 0 {
		// "+" is in no EndpointSlice's name, so the hash can be nobody else's.
		suffix = "-" + hash(slice+"+"+strconv.Itoa(part)) + suffix
	}
	name := cluster + "." + slice + suffix
	if len(name) <= maxName {
		return name
	}
	return fmt.Sprintf("%s.%s.%s", cluster, hash(fmt.Sprintf("%s+%d", slice, part)), namespace)
}

// SliceName is the name of an imported EndpointSlice: the service and the cluster for people, and a hash over what it was
// made from, which alone tells slices of one service and cluster apart.
func SliceName(service, cluster string, source ...string) string {
	return fmt.Sprintf("%s-%s-%s", service, cluster, hash(cluster+"/"+strings.Join(source, "/")))
}

// MaxDNSName is the longest name that DNS can hold, as text without the dot at its end (RFC 1035, 2.3.4).
const MaxDNSName = 253

// DNSName is the name of a pod with a hostname, behind a service, in a cluster.
func DNSName(hostname, cluster string, service Key) string {
	return fmt.Sprintf("%s.%s.%s.%s.svc.clusterset.local", hostname, cluster, service.Name, service.Namespace)
}
