package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
)

// authority signs certificates of a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	a.cert, a.key = a.sign(template, nil, nil, "ca")
	return a
}

// sign writes name.crt and name.key and returns what is in them; a certificate without a parent signs itself.
func (a *authority) sign(template, parent *x509.Certificate, by *ecdsa.PrivateKey, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
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
	for file, block := range map[string]*pem.Block{a.path(name + ".crt"): {Type: "CERTIFICATE", Bytes: der}, a.path(name + ".key"): {Type: "EC PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue makes a certificate of 127.0.0.1 for servers and clients.
func (a *authority) issue(name string) (certFile, keyFile string) {
	a.sign(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, a.key, name)
	return a.path(name + ".crt"), a.path(name + ".key")
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// client is what a client that trusts the authority uses, with a certificate of issuer, if there is one.
func (a *authority) client(issuer *authority) *tls.Config {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if issuer != nil {
		pair, err := tls.LoadX509KeyPair(issuer.issue("client"))
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// TestAPITLS: with a certificate the API speaks TLS only, and with an authority for clients to those only that it signed.
func TestAPITLS(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	cert, key := ours.issue("node")
	ask := func(n *node, c *tls.Config) error {
		t.Helper()
		api, err := client.New(client.Config{Endpoints: []string{n.listeners.api.Addr().String()}, TLS: c, Patience: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		_, err = api.Nodes(t.Context())
		return errors.Join(err, api.Close())
	}
	for _, server := range []struct{ name, clientCA string }{{"without certificates of clients", ""}, {"with them", ours.path("ca.crt")}} {
		t.Run(server.name, func(t *testing.T) {
			n := startNode(t, func(c *Config) { c.APICert, c.APIKey, c.APIClientCA = cert, key, server.clientCA })
			for _, c := range []struct {
				name string
				tls  *tls.Config
				ok   bool
			}{
				{"a certificate of our authority", ours.client(ours), true},
				{"none", ours.client(nil), server.clientCA == ""},
				{"a certificate of another authority", ours.client(theirs), server.clientCA == ""},
				{"another authority trusted", theirs.client(ours), false},
				{"plain text", nil, false},
			} {
				err := ask(n, c.tls)
				if c.ok && err != nil || !c.ok && !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		})
	}
}

// TestTLSFlags: what is missing or cannot be read is told by the flag's name.
func TestTLSFlags(t *testing.T) {
	for _, c := range []struct {
		edit func(*Config)
		want string
	}{
		{func(c *Config) { c.APICert = "x" }, "--api-tls-key"},
		{func(c *Config) { c.APIClientCA = "x" }, "--api-tls-client-ca"},
	} {
		var config Config
		c.edit(&config)
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %s", err, c.want)
		}
	}
	config := Config{APICert: "none", APIKey: "none"}
	if _, err := config.apiTLS(); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), "--api-tls-cert") {
		t.Errorf("no file: %v", err)
	}
	a := newAuthority(t, "a")
	config.APICert, config.APIKey = a.issue("node")
	config.APIClientCA = config.APIKey
	if _, err := config.apiTLS(); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), "--api-tls-client-ca") {
		t.Errorf("no authority in the file: %v", err)
	}
}
