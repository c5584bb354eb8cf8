package main

import (
	"fmt"
	"slices"
)

// recipe is one image. From it come both the OCI archive and the Dockerfile, so that they cannot tell two stories.
type recipe struct {
	name string
	// debian are packages of Debian 12 that make up the root file system, with what they depend on; none for an image
	// of nothing but our own static binary.
	debian []string
	// links are made in the root file system, name to target: what the packages' own scripts, which do not run when an
	// image is put together without an engine, would have set up.
	links map[string]string
	// binary of dist/bin that is copied to the root, and is the entrypoint; empty in a toolbox.
	binary string
	// bindCapability lets the binary bind ports below 1024 without root.
	bindCapability bool
	// roots adds the certificates of the public authorities.
	roots bool
	// user that the container runs as, by number: Kubernetes cannot tell that a named one is not root.
	user int
	// ports are for the reader of the Dockerfile, and of `docker inspect`.
	ports []string
	// lab marks what only the lab needs; such an image has no Dockerfile.
	lab bool
}

const (
	root    = 0
	nonroot = 65532 // the number that distroless images use, and CoreDNS's own
)

// network is what a part needs that writes packet filter rules: both of iptables' back ends, for a node has the one that its
// kube-proxy chose.
var network = []string{"iptables"}

// strongSwan's IKE daemon, its client, and the plugin kernel-libipsec.
var strongSwan = []string{"strongswan-charon", "strongswan-swanctl", "libcharon-extra-plugins", "libstrongswan-standard-plugins"}

var recipes = []recipe{
	{
		name: "coredns", binary: "coredns", bindCapability: true, roots: true, user: nonroot,
		// DNS, and what the plugins prometheus, health and ready serve by default.
		ports: []string{"53/tcp", "53/udp", "9153/tcp", "8080/tcp", "8181/tcp"},
	},
	{name: "agent", binary: "fastnet-agent", roots: true, user: nonroot, ports: []string{"9470/tcp"}},
	{name: "gateway", binary: "fastnet-gateway", debian: slices.Concat(network, strongSwan), user: root, ports: []string{"9471/tcp", "51820/udp", "4500/udp"}},
	{name: "routeagent", binary: "fastnet-routeagent", debian: network, user: root, ports: []string{"9472/tcp"}},
	{name: "whereami", binary: "whereami", user: nonroot, bindCapability: true, ports: []string{"80/tcp"}, lab: true},
	{
		name: "toolbox", lab: true, user: root,
		debian: []string{
			"dash", "coreutils", "grep", "sed", "mawk", "hostname", "procps", "bind9-dnsutils", "bind9-host", "netcat-openbsd",
			"socat", "curl", "ca-certificates", "iperf3", "tcpdump", "iproute2", "iputils-ping", "iptables", "ipset", "conntrack", "jq",
			"unbound", "dnsperf",
		},
		links: map[string]string{
			"usr/bin/nc":         "../../bin/nc.openbsd",
			"usr/bin/awk":        "mawk",
			"usr/sbin/iptables":  "iptables-nft",
			"usr/sbin/ip6tables": "ip6tables-nft",
		},
	},
}

// repository is the name before the colon that manifests use.
func (r recipe) repository() string { return "fastnet.dev/" + r.name }

// dockerfile is the recipe for those who have an engine: `docker build -f deploy/images/<name>.Dockerfile .` from the root
// of a tree in which `make build` has run.
func (r recipe) dockerfile() string {
	text := "# Made from deploy/images/recipes.go by `make gen`; edit that instead.\n" +
		"# Run `make build` first, then: docker build -t " + r.repository() + ":dev -f deploy/images/" + r.name + ".Dockerfile .\n"
	prepare := ""
	if r.bindCapability {
		prepare += fmt.Sprintf("COPY dist/bin/%s /%s\nRUN setcap cap_net_bind_service=+ep /%s\n", r.binary, r.binary, r.binary)
	}
	if prepare != "" || r.roots {
		text += "FROM debian:bookworm-slim AS prepare\n" +
			"RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libcap2-bin\n" + prepare + "\n"
	}
	if len(r.debian) > 0 {
		text += "FROM debian:bookworm-slim\nRUN apt-get update \\\n && apt-get install -y --no-install-recommends"
		for _, name := range r.debian {
			text += " " + name
		}
		text += " \\\n && rm -rf /var/lib/apt/lists/*\n"
	} else {
		text += "FROM scratch\n"
	}
	if r.roots {
		text += "COPY --from=prepare /etc/ssl/certs/ca-certificates.crt " + rootsPath + "\n"
	}
	from := fmt.Sprintf("dist/bin/%s", r.binary)
	if r.bindCapability {
		from = fmt.Sprintf("--from=prepare /%s", r.binary)
	}
	text += fmt.Sprintf("COPY %s /%s\n", from, r.binary)
	for _, port := range r.ports {
		text += "EXPOSE " + port + "\n"
	}
	return text + fmt.Sprintf("WORKDIR /\nUSER %d:%d\nENTRYPOINT [\"/%s\"]\n", r.user, r.user, r.binary)
}
