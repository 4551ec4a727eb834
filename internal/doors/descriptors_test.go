package doors

import (
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
)

// Connections are accepted while enough descriptors are free, refused when not, and accepted again afterwards.
func TestDescriptorsStayFree(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		inner, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer inner.Close()
		d := KeepDescriptors(0, slog.New(slog.DiscardHandler))
		l := d.Guard(inner)
		accepted := make(chan net.Conn)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		dial := func() net.Conn {
			c, err := net.Dial(network, inner.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		first := dial()
		defer first.Close()
		served := <-accepted
		defer served.Close()
		room := d.Limit()
		d.limit.Store(descriptorOf(served)) // as many as are in use
		if d.Limit() == 0 {
			t.Fatal("the connection's descriptor is not known")
		}
		second := dial()
		defer second.Close()
		if n, err := second.Read(make([]byte, 1)); err == nil || n != 0 {
			t.Errorf("%s: a connection over the limit is served", network)
		}
		if d.Refused() != 1 {
			t.Errorf("%s: %d refused, want 1", network, d.Refused())
		}
		d.limit.Store(room)
		third := dial()
		defer third.Close()
		c := <-accepted
		defer c.Close()
		go func() { _, _ = c.Write([]byte{7}) }()
		if b, err := io.ReadAll(io.LimitReader(third, 1)); err != nil || len(b) != 1 {
			t.Errorf("%s: with descriptors again: %v", network, err)
		}
	}
}
