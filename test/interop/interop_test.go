//go:build interop

// Package interop_test runs the suite of NBD clients against the server on an export in memory, and against
// clusters of one and of three real nodes (`make interop`). STORAGED_INTEROP_URI names another export instead
// (nbd://host:port/export or nbd+unix:///export?socket=path), which loses its contents.
package interop_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/nbd/nbdtest"
	"github.com/storaged/storaged/test/interop/suite"
)

func TestInterop(t *testing.T) {
	if uri := os.Getenv("STORAGED_INTEROP_URI"); uri != "" {
		cfg, err := nbdclient.ParseURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		suite.Run(t, suite.Target{Network: cfg.Network, Address: cfg.Address, Export: cfg.Export})
		return
	}
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			suite.Run(t, suite.Target{Network: network, Address: serve(t, network, nbd.Config{}), Export: "volume-1"})
		})
	}
}

// serve starts a server with two volumes, and returns its address.
func serve(t *testing.T, network string, cfg nbd.Config) string {
	backend := nbdtest.NewBackend()
	backend.Add("volume-1", 100<<20)
	backend.Add("volume-2", 1<<20)
	cfg.Backend = backend
	server, err := nbd.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "nbd.sock")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(ctx, ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	return ln.Addr().String()
}

// TestTLS: libnbd and qemu reach a server that requires TLS, and do not without.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cfg := nbd.Config{RequireTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t, dir)}}}
	secureClients(t, serve(t, "tcp", cfg), dir)
}

// TestTLSClientCertificates: libnbd and qemu show the server their certificate, whatever its key.
func TestTLSClientCertificates(t *testing.T) {
	for kind, newKey := range map[string]func() (crypto.Signer, error){
		"EC":  func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"RSA": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			cert := pairs(t, dir, newKey)
			cfg, err := tlsfiles.Server("nbd", cert+"server-cert.pem", cert+"server-key.pem", cert+"ca-cert.pem")
			if err != nil {
				t.Fatal(err)
			}
			secureClients(t, serve(t, "tcp", nbd.Config{RequireTLS: true, TLS: cfg}), dir)
		})
	}
}

// pairs writes an authority, and certificates of a server and a client with their keys, as libnbd and qemu look for them.
func pairs(t *testing.T, dir string, newKey func() (crypto.Signer, error)) (prefix string) {
	t.Helper()
	prefix = dir + string(filepath.Separator)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	var caKey crypto.Signer
	for i, name := range []string{"ca", "server", "client"} {
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		c := ca
		if i == 0 {
			caKey = key
		} else {
			c = &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
				KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		}
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{"-cert.pem": {Type: "CERTIFICATE", Bytes: der}, "-key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(prefix+name+file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return prefix
}

// secureClients copies both ways with libnbd and qemu over TLS, to volume-1 of a server that requires it and that
// the authority in dir vouches for.
func secureClients(t *testing.T, address, dir string) {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	plain := "nbd://localhost:" + port + "/volume-1"
	secure := "nbds://localhost:" + port + "/volume-1?tls-certificates=" + dir
	if out, err := run(t, "nbdinfo", "--size", plain); err == nil {
		t.Errorf("nbdinfo without TLS: %s", out)
	}
	if out, err := run(t, "nbdinfo", "--size", secure); err != nil || out != "104857600\n" {
		t.Errorf("nbdinfo: %v: %s", err, out)
	}
	image := filepath.Join(dir, "image")
	want := bytes.Repeat([]byte("0123456789abcde"), 4<<20/15)
	if err := os.WriteFile(image, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "nbdcopy", "--connections=2", image, secure); err != nil {
		t.Fatalf("nbdcopy: %v: %s", err, out)
	}
	out, err := run(t, "qemu-io", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+dir, "--image-opts",
		"-c", "read -P 0x30 0 1", "-c", "write -P 0x78 15 5000", "-c", "read -P 0x78 15 5000", "driver=nbd,host=localhost,port="+port+
			",export=volume-1,tls-creds=tls")
	if err != nil || bytes.Contains([]byte(out), []byte("failed")) {
		t.Errorf("qemu-io: %v: %s", err, out)
	}
	back := filepath.Join(dir, "back")
	if out, err := run(t, "nbdcopy", "--connections=2", secure, back); err != nil {
		t.Fatalf("nbdcopy: %v: %s", err, out)
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	copy(want[15:], bytes.Repeat([]byte{0x78}, 5000))
	if !bytes.HasPrefix(got, want) {
		t.Error("what comes back is not what was copied")
	}
}

func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

// certificate makes an authority and a certificate for localhost, and leaves the authority's where GnuTLS looks.
func certificate(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	now := time.Now()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = key
		}
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca, caKey := issue(authority, authority, nil)
	leaf, key := issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, caKey)
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}
