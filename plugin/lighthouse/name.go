package lighthouse

import "strings"

// place is where in the tree of the zone a name lies. The tree has a fixed top; below a service the records decide.
//
//	<zone>                       apex
//	├── dns-version              version of the schema
//	├── dns                      nothing of its own, above ns
//	│   └── ns                   the server itself
//	└── svc                      nothing of its own
//	    └── <namespace>
//	        └── <service>        service; left holds the labels below it
type place int

const (
	placeNowhere place = iota
	placeApex
	placeVersion
	placeNSParent
	placeNS
	placeRoot
	placeNamespace
	placeService
)

// question is a query name taken apart. Its strings are parts of the name: taking it apart allocates nothing.
type question struct {
	place     place
	namespace string
	service   string
	// key is "service.namespace", as it stands in the name; the zone's services are found by it.
	key string
	// left holds the labels left of the service, without the dot at the end; "" for the service itself.
	left string
}

// matchZone gives the longest of zones that name lies in, "" for none. All are lower-case and fully qualified.
func matchZone(zones []string, name string) string {
	longest := ""
	for _, zone := range zones {
		if len(zone) > len(longest) && inZone(name, zone) {
			longest = zone
		}
	}
	return longest
}

func inZone(name, zone string) bool {
	n := len(name) - len(zone)
	return zone == "." || strings.HasSuffix(name, zone) && (n == 0 || name[n-1] == '.' && !escaped(name, n-1))
}

// parseName takes apart qname, lower-case and fully qualified, which lies in zone.
func parseName(qname, zone string) question {
	if !inZone(qname, zone) {
		return question{}
	}
	rest := qname[:len(qname)-len(zone)]
	if rest == "" {
		return question{place: placeApex}
	}
	if zone != "." { // whose dot is the one after the last label
		rest = rest[:len(rest)-1]
	}
	switch rest {
	case "dns-version":
		return question{place: placeVersion}
	case "dns":
		return question{place: placeNSParent}
	case "ns.dns":
		return question{place: placeNS}
	}

	rest, label := cutLast(rest)
	if label != "svc" {
		return question{}
	}
	if rest == "" {
		return question{place: placeRoot}
	}
	below := rest
	rest, namespace := cutLast(rest)
	if rest == "" {
		return question{place: placeNamespace, namespace: namespace}
	}
	left, service := cutLast(rest)
	key := below
	if left != "" {
		key = below[len(left)+1:]
	}
	return question{place: placeService, namespace: namespace, service: service, key: key, left: left}
}

// cutLast cuts the last label off name, which has no dot at its end. A dot after a backslash is part of a label.
func cutLast(name string) (rest, label string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '.' && !escaped(name, i) {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// cutFirst cuts the first label off name, which has no dot at its end.
func cutFirst(name string) (label, rest string) {
	for i := range len(name) {
		if name[i] == '.' && !escaped(name, i) {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

// escaped tells whether an odd number of backslashes stands before name[i]. The text form of names escapes with them.
func escaped(name string, i int) bool {
	odd := false
	for i--; i >= 0 && name[i] == '\\'; i-- {
		odd = !odd
	}
	return odd
}

// isBelow tells whether name lies below ancestor: it ends in ".ancestor".
func isBelow(name, ancestor string) bool {
	n := len(name) - len(ancestor)
	return n > 1 && name[n-1] == '.' && name[n:] == ancestor
}

// below joins name, which ends in a dot, and the zone that it lies in. The root is the one zone that adds no letter.
func below(name, zone string) string {
	if zone == "." {
		return name
	}
	return name + zone
}
