//go:build kube

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// serveNames answers the names of services and of the pods behind them, as a cluster's DNS does: by what the API server knows
// now. It listens in the control plane's network until the test ends.
func (l *lab) serveNames(t *testing.T) error {
	conn, err := l.listenPacket(net.JoinHostPort(l.machines[0].address(), "53"))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			question := append([]byte(nil), buf[:n]...)
			go func() {
				if answer := l.answer(question); answer != nil {
					_, _ = conn.WriteTo(answer, from) // who asked asks again
				}
			}()
		}
	}()
	return nil
}

// inNetwork runs f on a thread that is in the control plane's network: a socket belongs to the network of the thread that
// makes it. The thread stays until the process ends, so that nothing that it has started dies with it.
func (l *lab) inNetwork(f func()) error {
	l.enter.Do(func() {
		l.calls, l.entered = make(chan func()), make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			ns, err := os.Open("/run/netns/" + l.machines[0].namespace())
			if err == nil {
				err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
			}
			l.entered <- err
			for call := range l.calls {
				call()
			}
		}()
		l.enterErr = <-l.entered
	})
	if l.enterErr != nil {
		return l.enterErr
	}
	done := make(chan struct{})
	l.calls <- func() { f(); close(done) }
	<-done
	return nil
}

func (l *lab) listenPacket(address string) (conn net.PacketConn, err error) {
	inErr := l.inNetwork(func() { conn, err = net.ListenPacket("udp4", address) })
	return conn, errors.Join(inErr, err)
}

// connect makes the client of the API server; it is the administrator.
func (l *lab) connect() error {
	pair, err := tls.LoadX509KeyPair(l.etc("admin.crt"), l.etc("admin.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(l.etc("ca.crt"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	dial := func(_ context.Context, network, address string) (conn net.Conn, err error) {
		inErr := l.inNetwork(func() { conn, err = net.DialTimeout(network, address, 2*time.Second) })
		return conn, errors.Join(inErr, err)
	}
	l.api = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: dial, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	return err
}

// ask decodes what the API server has at a path.
func (l *lab) ask(path string, into any) error {
	answer, err := l.api.Get(fmt.Sprintf("https://%s:%d%s", l.machines[0].address(), apiPort, path))
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func (l *lab) answer(question []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	addresses, known := l.lookup(q.Name.String())
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Additionals = nil
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	if q.Type == dnsmessage.TypeA {
		for _, a := range addresses {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body: &dnsmessage.AResource{A: a.As4()}})
		}
	}
	answer, _ := m.Pack()
	return answer
}

// lookup returns the addresses of SERVICE.NAMESPACE.svc or POD.SERVICE.NAMESPACE.svc, with or without cluster.local.
func (l *lab) lookup(name string) (addresses []netip.Addr, known bool) {
	name = strings.TrimSuffix(strings.TrimSuffix(name, "."), ".cluster.local")
	parts := strings.Split(strings.TrimSuffix(name, ".svc"), ".")
	if !strings.HasSuffix(name, ".svc") || len(parts) < 2 || len(parts) > 3 {
		return nil, false
	}
	pod, service, namespace := "", parts[len(parts)-2], parts[len(parts)-1]
	if len(parts) == 3 {
		pod = parts[0]
	}
	var s struct{ Spec struct{ ClusterIP string } }
	if err := l.ask("/api/v1/namespaces/"+namespace+"/services/"+service, &s); err != nil {
		return nil, false
	}
	if ip, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil && pod == "" {
		return []netip.Addr{ip}, true
	}
	var slices struct {
		Items []struct {
			Endpoints []struct {
				Addresses  []string
				Hostname   string
				Conditions struct{ Ready bool }
			}
		}
	}
	path := "/apis/discovery.k8s.io/v1/namespaces/" + namespace + "/endpointslices?labelSelector=kubernetes.io/service-name%3D" + service
	if err := l.ask(path, &slices); err != nil {
		return nil, false
	}
	for _, slice := range slices.Items { // ready says true for those that are published unready
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready && (pod == "" || e.Hostname == pod) {
				if ip, err := netip.ParseAddr(e.Addresses[0]); err == nil {
					addresses = append(addresses, ip)
				}
			}
		}
	}
	return addresses, len(addresses) > 0
}
