// Package tlstest makes authorities and certificates for tests, as PEM files in a directory of the test.
package tlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates that are valid for an hour. It is made by New and may not be used concurrently.
type Authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority.
func New(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	a.cert, a.key = a.sign(template, nil, nil, "ca")
	return a
}

// CA is the file with the authority's own certificate.
func (a *Authority) CA() string { return filepath.Join(a.dir, "ca.crt") }

// Issue makes a certificate of 127.0.0.1 for servers and clients, with these organizational units, and returns its file and
// its key's.
func (a *Authority) Issue(name string, units ...string) (certFile, keyFile string) {
	a.t.Helper()
	return a.issue(pkix.Name{CommonName: name, OrganizationalUnit: units}, time.Hour, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// IssueServer makes a certificate that is good for servers only.
func (a *Authority) IssueServer(name string) (certFile, keyFile string) {
	a.t.Helper()
	return a.issue(pkix.Name{CommonName: name}, time.Hour, x509.ExtKeyUsageServerAuth)
}

// IssueExpired makes a certificate that was good for clients until a minute ago.
func (a *Authority) IssueExpired(name string) (certFile, keyFile string) {
	a.t.Helper()
	return a.issue(pkix.Name{CommonName: name}, -time.Minute, x509.ExtKeyUsageClientAuth)
}

func (a *Authority) issue(subject pkix.Name, until time.Duration, usage ...x509.ExtKeyUsage) (certFile, keyFile string) {
	a.t.Helper()
	a.sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: subject, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(until), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage}, a.cert, a.key, subject.CommonName)
	return filepath.Join(a.dir, subject.CommonName+".crt"), filepath.Join(a.dir, subject.CommonName+".key")
}

// Client is what a client that trusts the authority uses, with a certificate of issuer, if there is one.
func (a *Authority) Client(issuer *Authority) *tls.Config {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if issuer != nil {
		pair, err := tls.LoadX509KeyPair(issuer.Issue("client"))
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// sign writes name.crt and name.key and returns what is in them; a certificate without a parent signs itself.
func (a *Authority) sign(template, parent *x509.Certificate, by *ecdsa.PrivateKey, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}
