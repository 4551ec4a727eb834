// Package tlsfiles makes the TLS settings of every program of this project from the PEM files that its flags name: Client
// for the API, Peer for the connections between nodes and from hosts' gateways to nodes, Server for what nodes serve.
//
// Files are read when the settings are made, and not again: a new certificate needs a restart. Errors are KindInvalid and
// name the flag. It checks no dates and no names; the handshake does.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	storage "github.com/storaged/storaged"
)

// Client says how a client of the API speaks to nodes. The zero value is plain text. The tags are those of a program's
// settings (the flag's name, its help); all programs that speak to the API have these flags.
type Client struct {
	Enabled    bool   `flag:"tls" help:"speak TLS to the API; implied by the flags for certificates"`
	CA         string `flag:"tls-ca" help:"certificates (PEM) that the nodes' certificates must be signed by (default: the system's authorities)"`
	Cert       string `flag:"tls-cert" help:"own certificate for the API (PEM)"`
	Key        string `flag:"tls-key" help:"its key (PEM)"`
	ServerName string `flag:"tls-server-name" help:"name in the nodes' certificates, when it is not the endpoint's"`
}

// IsZero reports whether nothing is set.
func (c Client) IsZero() bool { return c == Client{} }

// Validate returns what is wrong with the combination; it reads no file.
func (c Client) Validate() error {
	if (c.Cert == "") != (c.Key == "") {
		return errors.New("--tls-cert and --tls-key go together")
	}
	return nil
}

// Config returns how to speak to nodes: nil for plain text.
func (c Client) Config() (*tls.Config, error) {
	if !c.Enabled && c.CA == "" && c.Cert == "" && c.Key == "" {
		return nil, nil
	}
	if err := c.Validate(); err != nil {
		return nil, storage.E("set up TLS", storage.KindInvalid, "", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	var err error
	if c.CA != "" {
		if t.RootCAs, err = authorities("tls-ca", c.CA); err != nil {
			return nil, err
		}
	}
	if c.Cert != "" {
		if t.Certificates, err = pair("tls", c.Cert, c.Key); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Server returns the settings of a server; nil without a certificate. With clientCA its clients need a certificate, too.
// flags is what the flags' names begin with: "api" for --api-tls-cert.
func Server(flags, cert, key, clientCA string) (*tls.Config, error) {
	if cert == "" {
		return nil, nil
	}
	own, err := pair(flags+"-tls", cert, key)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: own}
	if clientCA != "" {
		pool, err := authorities(flags+"-tls-client-ca", clientCA)
		if err != nil {
			return nil, err
		}
		// Certificates are verified here and not by tls.RequireAndVerifyClientCert, which tells clients whose certificates
		// are good. Those of GnuTLS 3.7 (libnbd, QEMU) look for one then, find no RSA certificate good under TLS 1.3, and
		// send none; not told, they send what they have.
		t.ClientAuth = tls.RequireAnyClientCert
		t.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(s, pool) }
	}
	return t, nil
}

// verifyClient returns why a client's certificate is not good. It is asked for every connection, resumed ones too.
func verifyClient(s tls.ConnectionState, authorities *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the client shows no certificate")
	}
	o := x509.VerifyOptions{Roots: authorities, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(o)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	return nil
}

// Peer returns the settings of both ends of the peer protocol, where each shows a certificate of the same authorities; nil
// without a certificate. Who the other end may be is for the transport to say (replication/peer).
func Peer(cert, key, ca string) (*tls.Config, error) {
	if cert == "" {
		return nil, nil
	}
	own, err := pair("peer-tls", cert, key)
	if err != nil {
		return nil, err
	}
	pool, err := authorities("peer-tls-ca", ca)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: own, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert}, nil
}

// CheckPeer returns what is wrong with the combination of Peer's files: all are named, or none.
func CheckPeer(cert, key, ca string) error {
	if (cert == "") != (key == "") || (cert == "") != (ca == "") {
		return errors.New("--peer-tls-cert, --peer-tls-key and --peer-tls-ca go together")
	}
	return nil
}

func pair(flags, cert, key string) ([]tls.Certificate, error) {
	p, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, storage.E("load", storage.KindInvalid, fmt.Sprintf("--%s-cert %s, --%s-key %s", flags, cert, flags, key), err)
	}
	return []tls.Certificate{p}, nil
}

// maxBytes bounds a file of authorities: those of a whole system have a quarter of it.
const maxBytes = 1 << 20

func authorities(flag, path string) (*x509.CertPool, error) {
	fail := func(err error) (*x509.CertPool, error) {
		return nil, storage.E("load", storage.KindInvalid, "--"+flag+" "+path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(err)
	}
	if info.Size() > maxBytes {
		return fail(fmt.Errorf("it has %d bytes; a file of certificates has at most %d", info.Size(), maxBytes))
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return fail(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fail(errors.New("there is no certificate in the file"))
	}
	return pool, nil
}
