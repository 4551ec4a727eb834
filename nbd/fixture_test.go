package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// fixture is a server over a backend in memory that has one volume "v".
type fixture struct {
	t       testing.TB
	ctx     context.Context
	stop    context.CancelFunc // of the server
	backend *nbdtest.Backend
	volume  *nbdtest.Volume
	server  *nbd.Server
	conns   sync.WaitGroup
}

const testSize = 1 << 20

// newFixture starts nothing; pipe and listen do. change may alter the configuration.
func newFixture(t testing.TB, change func(*nbd.Config)) *fixture {
	f := &fixture{t: t, backend: nbdtest.NewBackend()}
	f.volume = f.backend.Add("v", testSize)
	cfg := nbd.Config{Backend: f.backend}
	if change != nil {
		change(&cfg)
	}
	s, err := nbd.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.server = s
	f.ctx, f.stop = context.WithCancel(context.Background())
	t.Cleanup(func() {
		f.stop()
		f.conns.Wait()
	})
	return f
}

// pipe serves one end of a pipe and returns the other.
func (f *fixture) pipe() net.Conn {
	client, server := net.Pipe()
	f.conns.Go(func() { _ = f.server.ServeConn(f.ctx, server) })
	return client
}

// listen serves a real socket and returns what a client needs to reach it.
func (f *fixture) listen(network string) nbdclient.Config {
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(f.t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		f.t.Fatal(err)
	}
	f.conns.Go(func() {
		if err := f.server.Serve(f.ctx, ln); err != nil {
			f.t.Errorf("Serve: %v", err)
		}
	})
	return nbdclient.Config{Network: network, Address: ln.Addr().String(), Export: "v"}
}

// client connects through a pipe. It is closed with the test.
func (f *fixture) client(cfg nbdclient.Config) *nbdclient.Client {
	if cfg.Export == "" {
		cfg.Export = "v"
	}
	c, err := nbdclient.New(f.ctx, f.pipe(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// dial connects to what listen returned. It is closed with the test.
func (f *fixture) dial(cfg nbdclient.Config) *nbdclient.Client {
	c, err := nbdclient.Dial(f.ctx, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// certificate makes a self-signed certificate for "localhost" and a pool that trusts it.
func certificate(t testing.TB) (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// pattern is n bytes that differ from their neighbours and from other seeds'.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ seed | 1
	}
	return p
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("%s: differs at byte %d of %d", what, i, len(want))
		}
	}
}
