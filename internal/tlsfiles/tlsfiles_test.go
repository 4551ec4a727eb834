package tlsfiles

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/tlsfiles/tlstest"
)

// TestClientIsPlainUnlessAsked: TLS is spoken when a flag says so, and when a file is named that only TLS can use.
func TestClientIsPlainUnlessAsked(t *testing.T) {
	a := tlstest.New(t, "ours")
	cert, key := a.Issue("client")
	for _, c := range []struct {
		client Client
		speaks bool
	}{
		{Client{}, false},
		{Client{ServerName: "node"}, false},
		{Client{Enabled: true}, true},
		{Client{CA: a.CA()}, true},
		{Client{Cert: cert, Key: key}, true},
	} {
		config, err := c.client.Config()
		if err != nil || (config != nil) != c.speaks {
			t.Errorf("%+v: %v, %v", c.client, config, err)
		}
	}
	config, err := Client{CA: a.CA(), Cert: cert, Key: key, ServerName: "node"}.Config()
	if err != nil || config.RootCAs == nil || len(config.Certificates) != 1 || config.ServerName != "node" {
		t.Errorf("all of them: %+v, %v", config, err)
	}
}

// TestFilesThatDoNot: what is missing, or is not what it should be, is told by the flag's name.
func TestFilesThatDoNot(t *testing.T) {
	a, other := tlstest.New(t, "ours"), tlstest.New(t, "other")
	cert, key := a.Issue("node")
	_, foreign := other.Issue("node")
	empty, large := filepath.Join(t.TempDir(), "empty"), filepath.Join(t.TempDir(), "large")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.WriteFile(large, make([]byte, maxBytes+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	of := func(c *tls.Config, err error) error { _ = c; return err }
	for want, err := range map[string]error{
		"--tls-cert and --tls-key go together": of(Client{Cert: cert}.Config()),
		"--tls-ca none":                        of(Client{CA: "none"}.Config()),
		"--tls-ca " + empty:                    of(Client{CA: empty}.Config()),
		"--tls-ca " + large:                    of(Client{CA: large}.Config()),
		"--tls-cert " + cert:                   of(Client{Cert: cert, Key: foreign}.Config()),
		"--nbd-tls-key none":                   of(Server("nbd", cert, "none", "")),
		"--api-tls-client-ca " + key:           of(Server("api", cert, key, key)),
		"--peer-tls-cert none":                 of(Peer("none", key, a.CA())),
		"--peer-tls-ca " + empty:               of(Peer(cert, key, empty)),
	} {
		if !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// TestPeer: both ends show a certificate and check the other's, by the same authorities; half of the files is refused.
func TestPeer(t *testing.T) {
	a := tlstest.New(t, "ours")
	cert, key := a.Issue("node")
	config, err := Peer(cert, key, a.CA())
	if err != nil || config.ClientAuth != tls.RequireAndVerifyClientCert || config.RootCAs == nil || config.ClientCAs == nil ||
		len(config.Certificates) != 1 || config.MinVersion != tls.VersionTLS13 {
		t.Errorf("%+v, %v", config, err)
	}
	if config, err := Peer("", "", ""); config != nil || err != nil {
		t.Errorf("without files: %v, %v", config, err)
	}
	for files, ok := range map[[3]string]bool{{}: true, {"c", "k", "a"}: true, {"c", "k", ""}: false, {"", "k", "a"}: false, {"", "", "a"}: false} {
		if err := CheckPeer(files[0], files[1], files[2]); (err == nil) != ok {
			t.Errorf("%q: %v", files, err)
		}
	}
}

// TestServerVerifiesClients: a client needs a certificate of the authority that is good for clients and has not expired, also
// when it resumes a session; it is not told of whom, or clients of GnuTLS would not send their RSA certificates.
func TestServerVerifiesClients(t *testing.T) {
	ours, theirs := tlstest.New(t, "ours"), tlstest.New(t, "theirs")
	cert, key := ours.Issue("node")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server, err := Server("nbd", cert, key, ours.CA())
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			client *tls.Config
			ok     bool
		}{
			"ours": {ours.Client(ours), true}, "none": {ours.Client(nil), false}, "theirs": {ours.Client(theirs), false},
			"a server's": {withCertificate(t, ours, ours.IssueServer), false}, "expired": {withCertificate(t, ours, ours.IssueExpired), false},
		} {
			c.client.MaxVersion, c.client.ServerName = version, "127.0.0.1"
			c.client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			if own := c.client.Certificates; len(own) > 0 {
				c.client.Certificates = nil
				c.client.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(r.AcceptableCAs) > 0 {
						t.Error("the client is told whose certificates are good")
					}
					return &own[0], nil
				}
			}
			for range 2 {
				if err := greet(t, server, c.client); (err == nil) != c.ok {
					t.Errorf("TLS %x, certificate %s: %v", version, name, err)
				}
			}
		}
	}
}

func withCertificate(t *testing.T, a *tlstest.Authority, issue func(string) (string, string)) *tls.Config {
	pair, err := tls.LoadX509KeyPair(issue("odd"))
	if err != nil {
		t.Fatal(err)
	}
	c := a.Client(nil)
	c.Certificates = []tls.Certificate{pair}
	return c
}

// greet has a client connect and hear one byte of the server.
func greet(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = ours.SetDeadline(time.Now().Add(10 * time.Second))
	_ = theirs.SetDeadline(time.Now().Add(10 * time.Second))
	done := make(chan error, 1)
	go func() {
		defer theirs.Close()
		s := tls.Server(theirs, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	c := tls.Client(ours, client)
	_, err = io.ReadFull(c, make([]byte, 1))
	_ = ours.Close()
	return errors.Join(err, <-done)
}
