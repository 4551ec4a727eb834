package peer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// TestConformance holds every fabric to the same promises.
func TestConformance(t *testing.T) {
	fabrics := map[string]struct {
		fab fabric
		tls *tls.Config
	}{
		"tcp":    {fab: loopback()},
		"tls":    {fab: loopback(), tls: testTLS(t)},
		"simnet": {fab: simulated(simnet.New(simnet.Config{Link: simnet.Link{Delay: 20 * time.Microsecond}}))},
	}
	tests := map[string]func(*testing.T, *mesh){
		"echo": testEcho, "order": testOrder, "errors": testErrors, "cancel": testCancel, "address": testCallAddr,
		"sizes": testSizes, "written": testWritten, "buffers": testBuffers, "layout": testLayout,
	}
	for name, f := range fabrics {
		for test, run := range tests {
			t.Run(name+"/"+test, func(t *testing.T) {
				run(t, newMesh(t, f.fab, 2, func(c *Config) { c.TLS = f.tls }, conformHandlers))
			})
		}
	}
}

const (
	methodEcho     Method = 1000 + iota // Concurrent
	methodEchoLine                      // Ordered
	methodFail                          // replies with an error chosen by the header
	methodHang                          // answers when nobody listens any more
	methodKeep                          // retains, releases late and takes
)

func conformHandlers(tr *Transport) {
	tr.Handle(methodEcho, termsOf(methodEcho, Concurrent), echo)
	tr.Handle(methodNodeInfo, termsOf(methodNodeInfo, Concurrent), echo)
	tr.Handle(methodEchoLine, termsOf(methodEchoLine, Ordered), echo)
	tr.Handle(methodHang, termsOf(methodHang, Concurrent), func(in *Inbound) { <-in.Context().Done(); in.Reply(nil, nil) })
	tr.Handle(methodFail, termsOf(methodFail, Concurrent), func(in *Inbound) {
		if string(in.Header) == "leader" {
			in.ReplyError(storage.E("propose", storage.KindNotLeader, "group 7", hint(3)))
			return
		}
		in.ReplyError(fmt.Errorf("outside: %w", storage.E("read", storage.Kind(in.Header[0]), "volume x", errors.New("deep"))))
	})
	tr.Handle(methodKeep, termsOf(methodKeep, Ordered), func(in *Inbound) {
		in.Retain()
		go func() {
			defer in.Release()
			in.Reply(in.Header, [][]byte{in.TakePayload()})
		}()
	})
}

type hint uint64

func (h hint) Error() string       { return fmt.Sprintf("node %d leads", uint64(h)) }
func (h hint) ErrorDetail() uint64 { return uint64(h) }

func testEcho(t *testing.T, m *mesh) {
	ctx := testContext(t)
	for _, to := range []storage.NodeID{1, 2} {
		for _, method := range []Method{methodEcho, methodEchoLine, methodKeep} {
			for lane := Lane(0); lane < laneCount; lane++ {
				for _, n := range []int{0, 1, 4096, 1 << 20, MaxPayloadBytes} {
					if n > 4096 && (lane != Bulk || method == methodEchoLine) {
						continue // enough of them, and slow under the race detector
					}
					half := bytes.Repeat([]byte{byte(n), 7}, n/4)
					rest := bytes.Repeat([]byte{9}, n-len(half))
					resp, err := m.nodes[1].Call(ctx, to, lane, &Request{Method: method, Group: 3,
						Header: []byte("head"), Payload: [][]byte{half, nil, rest}})
					if err != nil {
						t.Fatal(err)
					}
					if string(resp.Header) != "head" || !bytes.Equal(resp.Payload, append(half, rest...)) {
						t.Fatalf("to %v method %d %d bytes: the echo differs", to, method, n)
					}
					resp.Release()
				}
			}
		}
	}
}

// testOrder: what Go sends on one lane reaches the handler of an Ordered method in that order, a group at a time.
func testOrder(t *testing.T, m *mesh) {
	ctx := testContext(t)
	for _, to := range []storage.NodeID{1, 2} {
		if resp, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: methodEcho}); err != nil {
			t.Fatal(err)
		} else {
			resp.Release()
		}
		const count, groups = 2000, 3
		results := make(chan error, count)
		var next [groups]atomic.Int64 // the number expected next; answers come in order, too
		for i := range count {
			group := i % groups
			want := int64(i / groups)
			m.nodes[1].Go(to, Data, &Request{Method: methodEchoLine, Group: storage.GroupID(group),
				Header: []byte{byte(want), byte(want >> 8)}, Payload: [][]byte{make([]byte, i)}},
				func(r *Response, err error) {
					if err == nil {
						got := int64(r.Header[0]) | int64(r.Header[1])<<8
						if n := next[group].Add(1) - 1; got != n || len(r.Payload) != i {
							err = fmt.Errorf("group %d: answer %d came as number %d with %d bytes", group, got, n, len(r.Payload))
						}
						r.Release()
					}
					results <- err
				})
		}
		for range count {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testErrors(t *testing.T, m *mesh) {
	ctx := testContext(t)
	for _, to := range []storage.NodeID{1, 2} {
		for _, kind := range storage.Kinds() {
			_, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: methodFail, Header: []byte{byte(kind)}})
			if storage.KindOf(err) != kind || !strings.Contains(err.Error(), "outside: read volume x: deep") {
				t.Errorf("kind %v travelled as %v: %v", kind, storage.KindOf(err), err)
			}
			var remote *RemoteError
			if !errors.As(err, &remote) || remote.Node != to {
				t.Errorf("%v does not say that node %v answered it", err, to)
			}
		}
		_, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: methodFail, Header: []byte("leader")})
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Detail != 3 || err.Error() != "propose group 7: node 3 leads" {
			t.Errorf("an error with detail travelled as %v", err)
		}
		if _, err = m.nodes[1].Call(ctx, to, Data, &Request{Method: 999}); storage.KindOf(err) != storage.KindUnsupported {
			t.Errorf("unknown method: %v", err)
		}
	}
	_, err := m.nodes[1].Call(ctx, 9, Data, &Request{Method: methodEcho})
	var send *SendError
	if !errors.Is(err, storage.ErrUnavailable) || !errors.As(err, &send) || send.Sent {
		t.Errorf("a node without an address: %v", err)
	}
}

func testCancel(t *testing.T, m *mesh) {
	for _, to := range []storage.NodeID{1, 2} {
		mustCall(t, m.nodes[1], to, Data, &Request{Method: methodEcho})
		ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
		_, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: methodHang})
		cancel()
		var send *SendError
		if !errors.Is(err, storage.ErrCanceled) || !errors.As(err, &send) || !send.Sent {
			t.Errorf("to %v: %v, want canceled, sent", to, err)
		}
		if _, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrCanceled) && err != nil {
			t.Errorf("with a context that is done: %v", err)
		}
	}
	ended := make(chan error, 2)
	for _, to := range []storage.NodeID{1, 2} { // its own handler may still answer
		m.nodes[1].Go(to, Data, &Request{Method: methodHang}, func(_ *Response, err error) { ended <- err })
	}
	m.stop[1]()
	for range 2 {
		if err := <-ended; err != nil && !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a request outstanding at Close ended with %v", err)
		}
	}
	for _, to := range []storage.NodeID{1, 2} {
		if _, err := m.nodes[1].Call(context.Background(), to, Data, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a call after Close: %v", err)
		}
	}
}

// testCallAddr: a node without an id may ask who is there and to join, and nothing else.
func testCallAddr(t *testing.T, m *mesh) {
	ctx := testContext(t)
	cfg := m.nodes[1].cfg
	for _, who := range []struct {
		name    string
		cluster storage.ClusterID
		self    storage.NodeID
		kind    storage.Kind
	}{
		{"joining", storage.ClusterID{}, 0, storage.KindNone}, {"joining, knows the cluster", testCluster, 0, storage.KindNone},
		{"member", testCluster, 5, storage.KindNone}, {"foreign", storage.ClusterID{9}, 0, storage.KindPermission},
	} {
		tr, err := New(Config{Cluster: who.cluster, Self: who.self, Dial: cfg.Dial, TLS: cfg.TLS})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.CallAddr(ctx, m.addrs[2], &Request{Method: methodNodeInfo, Header: []byte("hi"), Payload: [][]byte{[]byte("x")}})
		if k := remoteKind(err); k != who.kind {
			t.Errorf("%s: %v", who.name, err)
		}
		if err == nil {
			if string(resp.Header) != "hi" || string(resp.Payload) != "x" {
				t.Errorf("%s: answer %q %q", who.name, resp.Header, resp.Payload)
			}
			resp.Release()
			want := storage.KindNone
			if who.self == 0 {
				want = storage.KindPermission
			}
			if _, err := tr.CallAddr(ctx, m.addrs[2], &Request{Method: methodEcho}); storage.KindOf(err) != want {
				t.Errorf("%s: a call for members: %v", who.name, err)
			}
		}
		if who.self == 0 {
			if _, err := tr.Call(ctx, 2, Data, &Request{Method: methodNodeInfo}); storage.KindOf(err) != storage.KindInvalid {
				t.Errorf("%s: a call by id: %v", who.name, err)
			}
		}
		tr.Close()
	}
}

// remoteKind is the kind of the innermost storage.Error.
func remoteKind(err error) storage.Kind {
	kind := storage.KindNone
	for err != nil {
		var e *storage.Error
		if !errors.As(err, &e) {
			break
		}
		kind, err = e.Kind, e.Err
	}
	return kind
}

func testSizes(t *testing.T, m *mesh) {
	ctx := testContext(t)
	for _, to := range []storage.NodeID{1, 2} {
		for _, req := range []*Request{
			{Method: methodEcho, Header: make([]byte, MaxHeaderBytes+1)},
			{Method: methodEcho, Payload: [][]byte{make([]byte, MaxPayloadBytes), {0}}},
		} {
			if _, err := m.nodes[1].Call(ctx, to, Bulk, req); storage.KindOf(err) != storage.KindInvalid {
				t.Errorf("too large a request: %v", err)
			}
		}
		parts := make([][]byte, 3000) // more than one writev takes
		for i := range parts {
			parts[i] = []byte{byte(i)}
		}
		resp, err := m.nodes[1].Call(ctx, to, Bulk, &Request{Method: methodEcho, Header: make([]byte, MaxHeaderBytes), Payload: parts})
		if err != nil || !bytes.Equal(resp.Payload, bytes.Join(parts, nil)) {
			t.Fatalf("many parts: %v", err)
		}
		resp.Release()
	}
}

// testWritten: ReplyThen tells when the payload is not referenced any more, also when nobody hears the reply.
func testWritten(t *testing.T, m *mesh) {
	ctx := testContext(t)
	in := make(chan *Inbound, 2)
	tr, err := New(Config{Cluster: testCluster, Self: 3, Dial: m.nodes[1].cfg.Dial, TLS: m.nodes[1].cfg.TLS, Resolve: m.resolve})
	if err != nil {
		t.Fatal(err)
	}
	m.nodes[2].handlers[methodFail].fn = func(i *Inbound) { in <- i }
	ended := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := tr.Call(ctx, 2, Data, &Request{Method: methodFail})
			ended <- err
		}()
	}
	written := make(chan int, 2)
	(<-in).ReplyThen(nil, [][]byte{make([]byte, 1<<20)}, func() { written <- 1 })
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-written
	late := <-in
	tr.Close()
	if err := <-ended; !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("outstanding at Close: %v", err)
	}
	<-late.Context().Done()
	late.ReplyThen(nil, [][]byte{make([]byte, 1<<20)}, func() { written <- 2 })
	<-written
	defer func() {
		if recover() == nil {
			t.Error("a second answer did not panic")
		}
	}()
	late.Reply(nil, nil)
}

// testBuffers: a payload that was taken stays as it is while others come and go.
func testBuffers(t *testing.T, m *mesh) {
	ctx := testContext(t)
	taken := make(chan []byte, 100)
	m.nodes[2].handlers[methodFail].fn = func(in *Inbound) {
		taken <- in.TakePayload()
		in.Reply(nil, nil)
	}
	for i := range cap(taken) {
		for _, method := range []Method{methodFail, methodEcho} {
			resp, err := m.nodes[1].Call(ctx, 2, Data, &Request{Method: method, Payload: [][]byte{bytes.Repeat([]byte{byte(i)}, 4096)}})
			if err != nil {
				t.Fatal(err)
			}
			resp.Release()
		}
	}
	close(taken)
	i := 0
	for p := range taken {
		if !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, 4096)) {
			t.Fatalf("payload %d was overwritten", i)
		}
		i++
	}
}

// testLayout: a payload is received where the method's Layout wants it and stays there, whatever comes after it. One that the
// Layout does not fit, a small one, and one that comes without a socket are in one part.
func testLayout(t *testing.T, m *mesh) {
	ctx := testContext(t)
	kept := make(chan [][]byte, 100)
	for _, n := range m.nodes {
		n.handlers[methodFail].Layout = func(header []byte, n int) [][]byte {
			if string(header) == "misfit" {
				return [][]byte{make([]byte, n-1)}
			}
			return [][]byte{make([]byte, 100), make([]byte, n-101), make([]byte, 1)}
		}
		n.handlers[methodFail].fn = func(in *Inbound) {
			parts := in.TakeParts()
			if len(parts) == 1 && len(in.Payload) != len(parts[0]) || len(parts) > 1 && in.Payload != nil {
				t.Errorf("%d parts, and a payload of %d bytes", len(parts), len(in.Payload))
			}
			kept <- parts
			in.Reply(nil, nil)
		}
	}
	content := func(i, n int) []byte { return bytes.Repeat([]byte{byte(i), byte(n), 0x5a, byte(i)}, n/4) }
	for i, c := range []struct {
		to     storage.NodeID
		header string
		bytes  int
		parts  int
	}{{2, "fits", layoutBytes, 3}, {2, "fits", MaxPayloadBytes, 3}, {2, "fits", layoutBytes - 4, 1}, {2, "misfit", layoutBytes, 1}, {1, "fits", layoutBytes, 1}, {2, "", 0, 0}} {
		for _, own := range []bool{false, true} {
			for _, n := range m.nodes {
				n.handlers[methodFail].SumsInRequests = own
			}
			for _, method := range []Method{methodFail, methodEcho} { // the second takes what buffers are free
				req := &Request{Method: method, Header: []byte(c.header), OwnSums: own && method == methodFail, Payload: [][]byte{content(i, c.bytes)}}
				resp, err := m.nodes[1].Call(ctx, c.to, Data, req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Release()
			}
			parts := <-kept
			if len(parts) != c.parts || !bytes.Equal(bytes.Join(parts, nil), content(i, c.bytes)) {
				t.Errorf("%q, %d bytes to %v, own sums %v: %d parts, want %d; equal: %v", c.header, c.bytes, c.to, own, len(parts), c.parts,
					bytes.Equal(bytes.Join(parts, nil), content(i, c.bytes)))
			}
		}
	}
}

// testTLS makes a certificate authority and one certificate for 127.0.0.1, used by every node.
func testTLS(t testing.TB) *tls.Config {
	t.Helper()
	return testTLSFor(t, "")[0]
}

// testTLSFor makes a certificate authority and one certificate for 127.0.0.1 for each organizational unit; "" is none.
func testTLSFor(t testing.TB, units ...string) (configs []*tls.Config) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	sign := func(cert, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	caKey, key := newKey(), newKey()
	caDER := sign(ca, ca, caKey, caKey)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	roots := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(parsed)
	for _, unit := range units {
		if leaf.Subject = (pkix.Name{}); unit != "" {
			leaf.Subject.OrganizationalUnit = []string{unit}
		}
		configs = append(configs, &tls.Config{RootCAs: roots, ClientCAs: roots,
			Certificates: []tls.Certificate{{Certificate: [][]byte{sign(leaf, parsed, key, caKey)}, PrivateKey: key}}})
	}
	return configs
}

// TestTLSRefusesStrangers: without a certificate of the cluster's authority nobody gets in, nor is believed.
func TestTLSRefusesStrangers(t *testing.T) {
	ours, theirs := testTLS(t), testTLS(t)
	m := newMesh(t, loopback(), 1, func(c *Config) { c.TLS = ours }, conformHandlers)
	mixed := ours.Clone()
	mixed.Certificates = theirs.Certificates
	for name, cfg := range map[string]*tls.Config{"plain": nil, "foreign": theirs, "foreign certificate": mixed} {
		tr, err := New(Config{Cluster: testCluster, Self: 2, TLS: cfg, Resolve: m.resolve})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Call(testContext(t), 1, Data, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		tr.Close()
	}
	if _, err := New(Config{Cluster: testCluster, Self: 2, TLS: &tls.Config{InsecureSkipVerify: true}, MaxInFlight: -1}); storage.KindOf(err) != storage.KindInvalid ||
		!strings.Contains(err.Error(), "ClientCAs") || !strings.Contains(err.Error(), "MaxInFlight") {
		t.Errorf("a bad configuration: %v", err)
	}
}
