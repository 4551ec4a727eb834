package peer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

func TestCommonVersion(t *testing.T) {
	for _, c := range []struct {
		a, b versions
		want uint16
	}{
		{versions{2, 2}, versions{2, 2}, 2}, {versions{2, 3}, versions{2, 3}, 3}, {versions{2, 2}, versions{2, 3}, 2},
		{versions{2, 4}, versions{3, 9}, 4}, {versions{2, 9}, versions{4, 5}, 5}, {versions{2, 2}, versions{3, 3}, 0},
		{versions{2, 3}, versions{4, 9}, 0}, {versions{1, 65535}, versions{65535, 65535}, 65535}, {versions{2, 2}, versions{}, 0},
	} {
		if ab, ba := c.a.common(c.b), c.b.common(c.a); ab != c.want || ba != c.want {
			t.Errorf("%v and %v: %d, the other way round %d, want %d", c.a, c.b, ab, ba, c.want)
		}
	}
}

// TestVersionsInAHello: what the reserved bytes of builds before mean, and that the last four stay free.
func TestVersionsInAHello(t *testing.T) {
	h := hello{layout: helloLayout, code: helloLone, from: 9}
	for _, c := range []struct {
		field string
		want  versions
		ok    bool
	}{
		{"0000000000000000", versions{2, 2}, true}, {"0200020000000000", versions{2, 2}, true}, {"0200030000000000", versions{2, 3}, true},
		{"0201ffff00000000", versions{0x0102, 0xffff}, true}, {"02000300ffffffff", versions{2, 3}, true}, {"00000000ffffffff", versions{2, 2}, true},
		{"0300020000000000", versions{}, false}, {"0000020000000000", versions{}, false}, {"0200000000000000", versions{}, false},
	} {
		b := h.appendTo(nil, helloMagic)
		field, err := hex.DecodeString(c.field)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[helloBytes-12:], field)
		binary.LittleEndian.PutUint32(b[helloBytes-4:], crc32.Checksum(b[:helloBytes-4], castagnoli))
		if got, err := parseHello(b, helloMagic); (err == nil) != c.ok || c.ok && got.speaks != c.want {
			t.Errorf("%s: %v, %v", c.field, got.speaks, err)
		}
	}
}

// TestChosenVersion: whoever dialled takes one version of those it has offered, and nothing else.
func TestChosenVersion(t *testing.T) {
	sent := hello{layout: helloLayout, code: helloPart, cluster: testCluster, from: 1, to: 2, nonce: 7, speaks: versions{2, 4}}
	for chosen, want := range map[versions]storage.Kind{
		{2, 2}: storage.KindNone, {4, 4}: storage.KindNone, {1, 1}: storage.KindUnsupported, {5, 5}: storage.KindUnsupported,
		{2, 3}: storage.KindInternal,
	} {
		answer := sent
		answer.code, answer.from, answer.to, answer.speaks = helloAccepted, 2, 1, chosen
		if err := answer.refusal(sent); storage.KindOf(err) != want {
			t.Errorf("%v: %v, want %v", chosen, err, want)
		}
	}
}

// protocolHandler answers every request with the version that its connection speaks.
func protocolHandler(tr *Transport) {
	for _, m := range []Method{methodEcho, methodNodeInfo} {
		tr.Handle(m, Terms{From: Members | Gateways | Strangers, Order: Concurrent}, func(in *Inbound) {
			in.Reply(binary.LittleEndian.AppendUint16(nil, in.Protocol()), nil)
		})
	}
}

// TestRangesMeet: two sides of any ranges speak the highest common version on every connection, whichever side dials and whatever
// it is. Without one, the errors at both ends name both ranges and the side to upgrade.
func TestRangesMeet(t *testing.T) {
	for name, c := range map[string]struct {
		one, two     versions
		want         uint16
		atOne, atTwo string // of the error there
	}{
		"today":          {one: versions{2, 2}, two: versions{2, 2}, want: 2},
		"one release on": {one: versions{2, 2}, two: versions{2, 3}, want: 2},
		"both on":        {one: versions{2, 3}, two: versions{2, 3}, want: 3},
		"2 was given up": {one: versions{2, 3}, two: versions{3, 4}, want: 3},
		"one inside":     {one: versions{2, 9}, two: versions{4, 5}, want: 5},
		"nothing common": {one: versions{2, 2}, two: versions{3, 4},
			atOne: "the peer speaks versions 3 to 4 of the peer protocol, this side version 2: upgrade this side",
			atTwo: "the peer speaks version 2 of the peer protocol, this side versions 3 to 4: upgrade the peer"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, logged := simnet.New(lan), map[storage.NodeID]*bytes.Buffer{1: {}, 2: {}}
				speaks := map[storage.NodeID]versions{1: c.one, 2: c.two}
				m := newMesh(t, simulated(network), 2, func(cfg *Config) {
					cfg.speaks, cfg.Logger = speaks[cfg.Self], slog.New(slog.NewTextHandler(logged[cfg.Self], nil))
				}, protocolHandler)
				texts := map[storage.NodeID]string{1: c.atOne, 2: c.atTwo}
				for from, to := range map[storage.NodeID]storage.NodeID{1: 2, 2: 1} {
					for kind, call := range diallers(t, m, network, speaks[from], from, to) {
						logged[to].Reset()
						got, err := call()
						<-time.After(time.Millisecond) // until the other side has noticed
						synctest.Wait()
						switch {
						case c.want != 0 && (err != nil || got != c.want):
							t.Errorf("%s of side %v: version %d, %v; want %d", kind, from, got, err, c.want)
						case c.want == 0 && (remoteKind(err) != storage.KindUnsupported || !strings.Contains(err.Error(), texts[from])):
							t.Errorf("%s of side %v: version %d, %v; want %q", kind, from, got, err, texts[from])
						case c.want == 0 && !strings.Contains(logged[to].String(), texts[to]):
							t.Errorf("%s of side %v: the other side logs %q; want %q", kind, from, logged[to], texts[to])
						}
					}
					if got, err := protocolOf(m.nodes[from].Call(t.Context(), from, Data, &Request{Method: methodEcho})); err != nil || got != speaks[from].max {
						t.Errorf("node %v speaks version %d with itself: %v", from, got, err)
					}
				}
			})
		})
	}
}

// protocolOf decodes what protocolHandler answers.
func protocolOf(resp *Response, err error) (uint16, error) {
	if err != nil {
		return 0, err
	}
	defer resp.Release()
	return binary.LittleEndian.Uint16(resp.Header), nil
}

// diallers returns how node to is called by node from, and by a gateway and a node without an id that speak the same versions as
// it. Each says which version the connection has at both ends.
func diallers(t *testing.T, m *mesh, network *simnet.Network, speaks versions, from, to storage.NodeID) map[string]func() (uint16, error) {
	set := func(tr *Transport) (got uint16, err error) {
		for lane := Lane(0); lane < laneCount; lane++ {
			if got, err = protocolOf(tr.Call(t.Context(), to, lane, &Request{Method: methodEcho})); err != nil {
				return 0, err
			}
			if own := tr.peer(to).set.Load().conns[lane].protocol; own != got {
				t.Errorf("the %v lane has version %d at the end that dialled, %d at the other", lane, own, got)
			}
		}
		return got, nil
	}
	dial := network.Machine("outside").Dial
	return map[string]func() (uint16, error){
		"node": func() (uint16, error) { return set(m.nodes[from]) },
		"gateway": func() (uint16, error) {
			return set(newTestClient(t, m, func(c *Config) { c.Dial, c.speaks = dial, speaks }))
		},
		"stranger": func() (uint16, error) {
			tr, err := New(Config{Dial: dial, speaks: speaks})
			if err != nil {
				return 0, err
			}
			defer tr.Close()
			return protocolOf(tr.CallAddr(t.Context(), m.addrs[to], &Request{Method: methodNodeInfo}))
		},
	}
}

// helloBefore returns the bytes of a build that wrote no range, as they were taken from it, checksum included.
func helloBefore(t *testing.T, magic string, lane Lane, code helloCode, from, to byte, sum string) []byte {
	t.Helper()
	node := func(id byte) string { return hex.EncodeToString([]byte{id, 0, 0, 0}) }
	b, err := hex.DecodeString(hex.EncodeToString([]byte(magic)) + "0200" + hex.EncodeToString([]byte{byte(lane), byte(code)}) +
		"01020300000000000000000000000000" + node(from) + node(to) + "0700000000000000" +
		"0807060504030201" + "0900000000000000" + "0a00000000000000" + "08" + "6f6c643a37303031" + zeroes(MaxAddressBytes-8) +
		"06" + "6f6c642f3137" + zeroes(MaxProcessBytes-6) + "0000000000000000" + sum)
	if err != nil || len(b) != helloBytes {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	return b
}

// readHelloBefore is readHello with parseHello as that build has them.
func readHelloBefore(r io.Reader, magic string) (h hello, err error) {
	const versionBefore = 2
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:helloStartBytes]); err != nil {
		return h, err
	}
	if h.layout = binary.LittleEndian.Uint16(b[8:]); string(b[:8]) != magic || h.layout != versionBefore {
		return h, errors.New("another magic or version")
	}
	if _, err := io.ReadFull(r, b[helloStartBytes:]); err != nil {
		return h, err
	}
	if crc32.Checksum(b[:helloBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[helloBytes-4:]) {
		return h, errors.New("the checksum of the peer's greeting does not match")
	}
	h.lane, h.code = Lane(b[10]), helloCode(b[11])
	copy(h.cluster[:], b[12:28])
	h.from = storage.NodeID(binary.LittleEndian.Uint32(b[28:]))
	h.to = storage.NodeID(binary.LittleEndian.Uint32(b[32:]))
	h.nonce = binary.LittleEndian.Uint64(b[36:])
	h.speaker.Instance = binary.LittleEndian.Uint64(b[44:])
	h.speaker.Starts = binary.LittleEndian.Uint64(b[52:])
	h.speaker.List = binary.LittleEndian.Uint64(b[60:])
	if h.speaker.Address, err = parseText(b[68 : 69+MaxAddressBytes]); err != nil {
		return h, err
	}
	h.speaker.Process, err = parseText(b[69+MaxAddressBytes : 70+MaxAddressBytes+MaxProcessBytes])
	return h, err
}

// TestBuildsBeforeDial: a node and a gateway of a build without ranges reach one with them, as long as it knows version 2.
func TestBuildsBeforeDial(t *testing.T) {
	for _, speaks := range []versions{known, {2, 3}, {3, 4}} {
		for from, sums := range map[byte][laneCount]string{
			9: {"cd8a7887", "73e9da3c", "403bd0f5"}, 0: {"31041c48", "8f67bef3", "bcb5b43a"}, // 0: a gateway
		} {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				m := newMesh(t, simulated(network), 2, func(c *Config) { c.speaks = speaks }, protocolHandler)
				code, want := helloPart, helloAccepted
				if from == 0 {
					code = helloClient
				}
				if speaks.min > 2 {
					want = helloWrongVersion
				}
				var nc net.Conn
				for _, lane := range []Lane{Control, Bulk, Data} {
					var err error
					if nc, err = network.Machine("old").Dial(t.Context(), m.addrs[2]); err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					if _, err := nc.Write(helloBefore(t, helloMagic, lane, code, from, 2, sums[lane])); err != nil {
						t.Fatal(err)
					}
					if a, err := readHelloBefore(nc, answerMagic); err != nil || a.code != want || a.lane != lane || a.nonce != 7 || a.cluster != testCluster || a.from != 2 {
						t.Fatalf("a node that speaks %v answers %+v, %v", speaks, a, err)
					}
				}
				if want != helloAccepted {
					return
				}
				b := make([]byte, frameHeaderBytes+2)
				if _, err := nc.Write(request(methodEcho, 1, 5, nil, nil)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(nc, b); err != nil {
					t.Fatal(err)
				}
				if f, err := parseFrame(b); err != nil || f.kind != kindResponse || binary.LittleEndian.Uint16(b[frameHeaderBytes:]) != 2 {
					t.Errorf("answer %+v, %x, %v", f, b[frameHeaderBytes:], err)
				}
			})
		}
	}
}

// TestBuildsBeforeAccept: the same with the build without ranges at the end that accepts. It takes what the reserved bytes hold.
func TestBuildsBeforeAccept(t *testing.T) {
	for _, speaks := range []versions{known, {2, 3}, {3, 4}} {
		for self, sums := range map[storage.NodeID][laneCount]string{
			1: {"69d4dd6f", "d7b77fd4", "e465751d"}, 0: {"a20556d4", "1c66f46f", "2fb4fea6"}, // 0: a gateway
		} {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				l, err := network.Machine("old").Listen(":1")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { <-time.After(time.Millisecond) }() // until the old build has noticed
				defer l.Close()
				go acceptBefore(t, l, self, sums)
				tr, err := New(Config{Cluster: testCluster, Self: self, Client: self == 0, Dial: network.Machine("new").Dial, speaks: speaks,
					Random: func() uint64 { return 7 }, Resolve: func(storage.NodeID) (string, bool) { return "old:1", true }})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				resp, err := tr.Call(t.Context(), 9, Data, &Request{Method: methodEcho})
				if speaks.min > 2 {
					const text = "the peer speaks version 2 of the peer protocol, this side versions 3 to 4: upgrade the peer"
					if remoteKind(err) != storage.KindUnsupported || !strings.Contains(err.Error(), text) {
						t.Errorf("%v, want %q", err, text)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				resp.Release()
				if got := tr.peer(9).set.Load().conns[Data].protocol; got != 2 {
					t.Errorf("version %d is spoken with a build before", got)
				}
			})
		}
	}
}

// acceptBefore is node 9 of the build without ranges, which node self, or a gateway, dials.
func acceptBefore(t *testing.T, l net.Listener, self storage.NodeID, sums [laneCount]string) {
	code := helloPart
	if self == 0 {
		code = helloClient
	}
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			h, err := readHelloBefore(nc, helloMagic)
			if err != nil || h.cluster != testCluster || h.from != self || h.to != 9 || h.lane >= laneCount || h.code != code {
				t.Errorf("the build before refuses %+v: %v", h, err)
				return
			}
			if _, err := nc.Write(helloBefore(t, answerMagic, h.lane, helloAccepted, 9, byte(self), sums[h.lane])); err != nil {
				return
			}
			answerRaw(nc, func(f frameHeader) []byte {
				return resealed(request(f.method, f.group, f.id, nil, nil), func(b []byte) { b[4] = byte(kindResponse) })
			})
		}()
	}
}
