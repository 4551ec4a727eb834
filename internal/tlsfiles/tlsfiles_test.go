package tlsfiles

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storaged/storaged"
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
