package doors

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestShares(t *testing.T) {
	s := NewShares(5, 3)
	var leave []func()
	for i, c := range []struct {
		address string
		ok      bool
	}{{"a", true}, {"a", true}, {"a", true}, {"a", false}, {"b", true}, {"", true}, {"b", false}, {"", false}} {
		l := s.Enter(c.address)
		if (l != nil) != c.ok {
			t.Errorf("step %d: %q enters: %v", i, c.address, l != nil)
		}
		leave = append(leave, l)
	}
	leave[0]()
	leave[0]()
	if s.taken != 4 || s.by["a"] != 2 {
		t.Errorf("after one has left: %d, %v", s.taken, s.by)
	}
	for _, l := range leave {
		if l != nil {
			l()
		}
	}
	if s.taken != 0 || len(s.by) != 0 {
		t.Errorf("left over: %d, %v", s.taken, s.by)
	}
	s = NewShares(2, 1)
	if one, two, three := s.Enter(""), s.Enter(""), s.Enter(""); one == nil || two == nil || three != nil {
		t.Error("a Unix socket's clients share the total and nothing else")
	}
}

func TestAddressOf(t *testing.T) {
	for _, c := range []struct {
		addr net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 4}, "10.1.2.3"},
		{&net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3")}, "10.1.2.3"},
		{&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3:4:5:6")}, "2001:db8:1:2::"},
		{&net.UnixAddr{Name: "@"}, ""},
		{nil, ""},
	} {
		if got := AddressOf(c.addr); got != c.want {
			t.Errorf("%v counts as %q, want %q", c.addr, got, c.want)
		}
	}
}

// What is over the bound is closed, and does not keep the listener from the next.
func TestLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan net.Addr, 1)
	l := Door{NewShares(8, 2), func(a net.Addr) { refused <- a }}.Limit(inner)
	defer l.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- nc
		}
	}()
	dial := func() net.Conn {
		nc, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	dial()
	dial()
	first := <-accepted
	<-accepted
	third := dial()
	_ = third.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the third connection of an address: %v, want it closed", err)
	}
	<-refused
	_ = first.Close()
	_ = first.Close()
	dial()
	defer (<-accepted).Close()
}
