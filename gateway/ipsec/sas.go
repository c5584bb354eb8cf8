package ipsec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sa is an IKE SA as charon has it.
type sa struct {
	name, id string
	// known: it is established. What is under way has no name yet. up: a child of it is installed, too.
	known, up bool
	// unheard: we initiate it, and the peer has not answered yet.
	unheard bool
	remote  netip.AddrPort
	since   time.Time
	// ends of its installed children, "local remote".
	ends []string
}

// parseSAs reads what "swanctl --list-sas --raw" prints: for each SA a line
//
//	list-sa event {NAME {uniqueid=1 state=ESTABLISHED remote-host=192.0.2.2 ... child-sas {NAME-1 {state=INSTALLED ...}}}}
func parseSAs(text string, now time.Time) (sas []sa, err error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "list-sa event {")
		if !ok {
			continue
		}
		p := parser{rest: rest}
		event := p.section()
		if p.bad {
			return nil, fmt.Errorf("cannot read what swanctl says: %.200s", line)
		}
		for _, ike := range event.sections {
			s := sa{name: ike.name, id: ike.values["uniqueid"]}
			if addr, err := netip.ParseAddr(ike.values["remote-host"]); err == nil {
				port, _ := strconv.ParseUint(ike.values["remote-port"], 10, 16)
				s.remote = netip.AddrPortFrom(addr, uint16(port))
			}
			if seconds, err := strconv.Atoi(ike.values["established"]); err == nil {
				s.since = now.Add(-time.Duration(seconds) * time.Second).Truncate(time.Second)
			}
			for _, list := range ike.sections {
				for _, child := range list.sections {
					if list.name == "child-sas" && child.values["state"] == "INSTALLED" {
						s.ends = append(s.ends, child.values["local-ts"]+" "+child.values["remote-ts"])
					}
				}
			}
			s.known = ike.values["state"] == "ESTABLISHED"
			spi, ok := ike.values["responder-spi"]
			s.unheard = ok && strings.Trim(spi, "0") == "" && ike.values["state"] == "CONNECTING"
			s.up = s.known && len(s.ends) > 0
			sas = append(sas, s)
		}
	}
	return sas, nil
}

// leads says whether an SA has a child between two addresses.
func (s sa) leads(own, peer netip.Addr) bool {
	return slices.Contains(s.ends, fmt.Sprintf("%s/128 %s/128", own, peer))
}

// section of a message of charon's: values and sections by name. A list is a value, its items with spaces between.
type section struct {
	name     string
	values   map[string]string
	sections []section
}

type parser struct {
	rest string
	bad  bool
}

// section reads up to the brace that closes it.
func (p *parser) section() section {
	s := section{values: map[string]string{}}
	for !p.bad {
		p.rest = strings.TrimLeft(p.rest, " ")
		if rest, ok := strings.CutPrefix(p.rest, "}"); ok {
			p.rest = rest
			return s
		}
		i := strings.IndexAny(p.rest, "={")
		if i <= 0 {
			p.bad = true
			break
		}
		name := strings.TrimSpace(p.rest[:i])
		opens := p.rest[i] == '{'
		p.rest = p.rest[i+1:]
		if opens {
			sub := p.section()
			sub.name = name
			s.sections = append(s.sections, sub)
			continue
		}
		end := " }"
		if rest, ok := strings.CutPrefix(p.rest, "["); ok {
			p.rest, end = rest, "]"
		}
		i = strings.IndexAny(p.rest, end)
		if i < 0 {
			p.bad = true
			break
		}
		s.values[name] = p.rest[:i]
		p.rest = strings.TrimPrefix(p.rest[i:], "]")
	}
	return s
}
