package nbdclient

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	storage "github.com/storaged/storaged"
)

func be32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

// awaitRequest reads what the client sends, to the end, and closes asked at its first request: a reply before that
// would be a reply to nothing.
func awaitRequest(r io.Reader, asked chan<- struct{}) {
	const requestMagic = 0x25609513
	var last uint32
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if last = last<<8 | uint32(b); last == requestMagic && asked != nil {
				close(asked)
				asked = nil
			}
		}
		if err != nil {
			if asked != nil {
				close(asked)
			}
			return
		}
	}
}

// script is a server that answers the first request with what it is told, whatever the client says.
func script(t *testing.T, transmission []byte) *Client {
	b := append([]byte("NBDMAGICIHAVEOPT"), 0, 3)
	reply := func(option, kind uint32, data []byte) {
		b = binary.BigEndian.AppendUint64(b, 0x3e889045565a9)
		b = append(be32(be32(be32(b, option), kind), uint32(len(data))), data...)
	}
	reply(8, 1, nil)
	info := binary.BigEndian.AppendUint64([]byte{0, 0}, 1<<20)
	reply(7, 3, append(info, 0, 1))
	reply(7, 1, nil)
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	asked := make(chan struct{})
	wg.Go(func() { awaitRequest(theirs, asked) })
	wg.Go(func() {
		_, _ = theirs.Write(b)
		<-asked
		_, _ = theirs.Write(transmission)
	})
	c, err := New(t.Context(), ours, Config{CompactHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = theirs.Close()
		wg.Wait()
	})
	return c
}

// dataChunk is a structured chunk of a READ: n bytes at offset.
func dataChunk(flags, kind uint16, offset uint64, n int) []byte {
	b := be32(nil, 0x668e33ef)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, 1)
	if kind == 2 {
		return be32(binary.BigEndian.AppendUint64(be32(b, 12), offset), uint32(n))
	}
	b = binary.BigEndian.AppendUint64(be32(b, uint32(8+n)), offset)
	return append(b, make([]byte, n)...)
}

// TestBadServers: replies that do not fit the request are errors, and no byte outside of the buffer is touched.
func TestBadServers(t *testing.T) {
	join := func(chunks ...[]byte) (b []byte) {
		for _, c := range chunks {
			b = append(b, c...)
		}
		return b
	}
	const off, n = 1000, 100
	for name, reply := range map[string][]byte{
		"before":       dataChunk(1, 1, off-1, n),
		"behind":       dataChunk(1, 1, off+1, n),
		"longer":       dataChunk(1, 1, off, n+1),
		"far away":     dataChunk(1, 1, 1<<63, n),
		"hole before":  dataChunk(1, 2, off-1, n),
		"hole behind":  dataChunk(1, 2, off+n, 1),
		"twice":        join(dataChunk(0, 1, off, n), dataChunk(1, 1, off, n)),
		"incomplete":   dataChunk(1, 1, off, n-1),
		"nothing":      dataChunk(1, 1, off, 0),
		"unknown kind": dataChunk(1, 3, off, n),
	} {
		c := script(t, reply)
		p := make([]byte, n)
		if err := c.ReadAt(t.Context(), p, off); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := script(t, join(dataChunk(0, 2, off, 40), dataChunk(1, 1, off+40, 60)))
	if err := c.ReadAt(t.Context(), make([]byte, n), off); err != nil {
		t.Errorf("a good reply: %v", err)
	}
}

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]Config{
		"nbd://host/vol":                  {Network: "tcp", Address: "host:10809", Export: "vol"},
		"nbd://[::1]:7/a%20b":             {Network: "tcp", Address: "[::1]:7", Export: "a b"},
		"nbd://host":                      {Network: "tcp", Address: "host:10809"},
		"nbd+unix:///vol?socket=/run/x":   {Network: "unix", Address: "/run/x", Export: "vol"},
		"nbds://host/vol":                 {Network: "tcp", Address: "host:10809", Export: "vol", TLS: &tls.Config{}},
		"nbds+unix:///vol?socket=%2Frun/": {Network: "unix", Address: "/run/", Export: "vol", TLS: &tls.Config{}},
	} {
		got, err := ParseURI(uri)
		if err != nil || got.Network != want.Network || got.Address != want.Address || got.Export != want.Export ||
			(got.TLS != nil) != (want.TLS != nil) {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	for _, uri := range []string{"", "http://x/", "nbd:///vol", "nbd+unix:///vol", "nbd://%zz"} {
		if _, err := ParseURI(uri); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%q: %v, want invalid", uri, err)
		}
	}
}
