package server

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/internal/tlsfiles/tlstest"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// TestAPITLS: with a certificate the API speaks TLS only, and with an authority for clients to those only that it signed.
func TestAPITLS(t *testing.T) {
	ours, theirs := tlstest.New(t, "ours"), tlstest.New(t, "theirs")
	cert, key := ours.Issue("node")
	ask := func(n *node, c *tls.Config) error {
		t.Helper()
		api, err := client.New(client.Config{Endpoints: []string{n.listeners.api.Addr().String()}, TLS: c, Patience: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		_, err = api.Nodes(t.Context())
		return errors.Join(err, api.Close())
	}
	for _, server := range []struct{ name, clientCA string }{{"without certificates of clients", ""}, {"with them", ours.CA()}} {
		t.Run(server.name, func(t *testing.T) {
			n := startNode(t, func(c *Config) { c.APICert, c.APIKey, c.APIClientCA = cert, key, server.clientCA })
			for _, c := range []struct {
				name string
				tls  *tls.Config
				ok   bool
			}{
				{"a certificate of our authority", ours.Client(ours), true},
				{"none", ours.Client(nil), server.clientCA == ""},
				{"a certificate of another authority", ours.Client(theirs), server.clientCA == ""},
				{"another authority trusted", theirs.Client(ours), false},
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

// TestNBDClientsNeedTheirCertificate: with an authority for clients, those without TLS are refused, and those without a
// certificate of it.
func TestNBDClientsNeedTheirCertificate(t *testing.T) {
	ours, theirs := tlstest.New(t, "ours"), tlstest.New(t, "theirs")
	cert, key := ours.Issue("node")
	n := startNode(t, func(c *Config) { c.NBDCert, c.NBDKey, c.NBDClientCA = cert, key, ours.CA() })
	for _, c := range []struct {
		name string
		tls  *tls.Config
		ok   bool
	}{
		{"a certificate of our authority", ours.Client(ours), true},
		{"none", ours.Client(nil), false},
		{"a certificate of another authority", ours.Client(theirs), false},
		{"plain text", nil, false},
	} {
		if c.tls != nil {
			c.tls.ServerName = "127.0.0.1"
		}
		// There is no such export; whoever is let in is told so.
		_, err := nbdclient.Dial(t.Context(), nbdclient.Config{Network: "tcp", Address: n.listeners.nbd.Addr().String(), Export: "none", TLS: c.tls})
		if let := errors.Is(err, storage.ErrNotFound); let != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
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
		{func(c *Config) { c.NBDClientCA = "x" }, "--nbd-tls-client-ca"},
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
	a := tlstest.New(t, "a")
	config.APICert, config.APIKey = a.Issue("node")
	config.APIClientCA = config.APIKey
	if _, err := config.apiTLS(); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), "--api-tls-client-ca") {
		t.Errorf("no authority in the file: %v", err)
	}
}
