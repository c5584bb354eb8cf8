package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// authority issues the certificates of one cluster. Its keys are in the state folder, so that a second `up` goes on with
// the same.
type authority struct {
	cert       *x509.Certificate
	key        *ecdsa.PrivateKey
	certPEM    []byte
	keyPEM     []byte
	accountKey []byte // PEM; signs service account tokens
}

// validity of all certificates; a lab lives for hours.
const validity = 30 * 24 * time.Hour

// openAuthority reads the authority kept in a folder, or makes one there.
func openAuthority(folder, cluster string) (*authority, error) {
	a := &authority{}
	var err error
	read := func(name string) []byte {
		text, failure := os.ReadFile(filepath.Join(folder, name))
		err = errors.Join(err, failure)
		return text
	}
	a.certPEM, a.keyPEM, a.accountKey = read("ca.crt"), read("ca.key"), read("sa.key")
	if errors.Is(err, fs.ErrNotExist) {
		return makeAuthority(folder, cluster)
	}
	if err != nil {
		return nil, err
	}
	certBlock, _ := pem.Decode(a.certPEM)
	keyBlock, _ := pem.Decode(a.keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s holds no usable certificate authority: run `fastnet-lab down`", folder)
	}
	if a.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
		return nil, err
	}
	a.key, err = x509.ParseECPrivateKey(keyBlock.Bytes)
	return a, err
}

func makeAuthority(folder, cluster string) (*authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	_, accountKey, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fastnet-lab " + cluster},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{cert, key, pemText("CERTIFICATE", der), keyPEM, accountKey}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	// The certificate is written last but is read first: without it the next `up` makes everything anew.
	for _, file := range []struct {
		name string
		text []byte
	}{{"sa.key", accountKey}, {"ca.key", keyPEM}, {"ca.crt", a.certPEM}} {
		if err := os.WriteFile(filepath.Join(folder, file.name), file.text, 0o600); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// issue makes a key and a certificate for a user (its groups in Kubernetes are the organizations) that, if it has names
// or addresses, serves them too.
func (a *authority) issue(user string, groups []string, names []string, addrs []netip.Addr) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: user, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    names,
	}
	for _, addr := range addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	if len(names)+len(addrs) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	return pemText("CERTIFICATE", der), keyPEM, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pemText("EC PRIVATE KEY", der), nil
}

func pemText(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// kubeconfig is the text of a kubeconfig for one user of one cluster, with cluster, user and context named after the
// cluster.
func (a *authority) kubeconfig(cluster, server, user string, groups ...string) (string, error) {
	cert, key, err := a.issue(user, groups, nil, nil)
	if err != nil {
		return "", err
	}
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[2]s}
clusters:
- name: %[1]s
  cluster:
    server: %[3]s
    certificate-authority-data: %[4]s
users:
- name: %[2]s
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
`, cluster, cluster+"-admin", server, encode(a.certPEM), encode(cert), encode(key)), nil
}

func pkiFolder(c *Cluster) string { return filepath.Join(StateDir, c.name, "pki") }
