package ipsec

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// strongswanConf is for charon and swanctl. Only the plugins that are named are loaded: nothing that would write resolv.conf,
// hand out addresses or ask anybody. Of the two that do ESP the first one that is loaded does it.
func strongswanConf(c Config, e esp) string {
	return fmt.Sprintf(`charon {
  load = random nonce openssl hmac kdf pem pkcs1 pkcs8 pubkey %skernel-netlink socket-default vici
  # By these what this charon has begun in the kernel is known to be ours.
  spi_min = %#x
  spi_max = %#x
  # Everything goes over the second one, see DefaultPort; 0 is any.
  port = 0
  port_nat_t = %d
  # Routes to peers' inner addresses go into the main table, before the blackhole; no rule is needed.
  routing_table = 0
  # Pods' routes come and go.
  process_route = no
  # A peer that is silent is given up after 1 + 1.4 + 2 + 2.7 s, and tried anew.
  retransmit_timeout = 1.0
  retransmit_base = 1.4
  retransmit_tries = 3
  plugins {
    kernel-netlink {
      # The kernel's own default: nothing is changed there.
      xfrm_acq_expires = 30
    }
    vici {
      socket = %s
    }
  }
  filelog {
    stderr {
      default = 0
      ike = 1
      cfg = 1
    }
  }
}
swanctl {
  load = random openssl pem pkcs1 pkcs8 pubkey
}
`, map[esp]string{userspaceESP: "kernel-libipsec "}[e], uint32(spiMin), uint32(spiMax), c.Port, c.socket())
}

func (c Config) socket() string { return "unix://" + filepath.Join(c.RunDir, "vici") }

// swanctlConf is all connections. A connection bears the name of its segment's device, which is made from the peer's name.
func swanctlConf(c Config, e esp, self string, own netip.Addr, peers []peer) string {
	device := ""
	if e == kernelESP {
		device = fmt.Sprintf("\n        if_id_in = %#x\n        if_id_out = %#x", ifID, ifID)
	}
	var b strings.Builder
	b.WriteString("connections {\n")
	for _, p := range sorted(peers) {
		// An initiator takes the first; as a responder we know the peer by its key, wherever it calls from.
		remote := "0.0.0.0/0, ::/0"
		if p.Address.IsValid() {
			remote = p.remote().Addr().String() + ", " + remote
		}
		fmt.Fprintf(&b, `  # %s
  %s {
    version = 2
    proposals = aes256gcm16-prfsha256-x25519
    local_port = %d
    remote_addrs = %s
    remote_port = %d
    encap = yes
    mobike = no
    unique = replace
    keyingtries = 1
    dpd_delay = 2s
    local {
      auth = pubkey
      id = "fqdn:%s"
      pubkeys = own.pem
    }
    remote {
      auth = pubkey
      id = "fqdn:%s"
      pubkeys = %s.pem
    }
    children {
      %s {
        local_ts = %s/128
        remote_ts = %s/128
        esp_proposals = aes256gcm16-x25519
        mode = tunnel%s
        dpd_action = clear
        close_action = none
        start_action = none
      }
    }
  }
`, p.Endpoint, p.Link, c.Port, remote, p.remote().Port(), self, p.Endpoint, p.Link, p.Link, own, p.inner, device)
	}
	b.WriteString("}\n")
	return b.String()
}

// pubPEM is a public key as swanctl reads it.
func pubPEM(key ed25519.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}
