package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// rawSet greets node 2 as node 9 on every lane and returns the bare connections.
func rawSet(t testing.TB, network *simnet.Network, addr string, nonce uint64) (lanes [laneCount]net.Conn) {
	t.Helper()
	for lane := range Lane(laneCount) {
		lanes[lane] = rawLane(t, network, addr, nonce, lane)
	}
	return lanes
}

// rawLane greets node 2 as node 9 on one lane.
func rawLane(t testing.TB, network *simnet.Network, addr string, nonce uint64, lane Lane) net.Conn {
	t.Helper()
	nc, err := network.Machine("raw").Dial(context.Background(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	h := hello{layout: helloLayout, lane: lane, code: helloPart, cluster: testCluster, from: 9, to: 2, nonce: nonce, speaks: known}
	if err := writeHello(nc, h, helloMagic); err != nil {
		t.Fatal(err)
	}
	answer, err := readHello(nc, answerMagic)
	if err == nil {
		err = answer.refusal(h)
	}
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

// keepPinging sends pings on nc until it fails.
func keepPinging(nc net.Conn) {
	ping := (&frameHeader{kind: kindPing}).appendTo(nil)
	go io.Copy(io.Discard, nc)
	go func() {
		for {
			if _, err := nc.Write(ping); err != nil {
				return
			}
			<-time.After(400 * time.Millisecond)
		}
	}()
}

func request(method Method, group storage.GroupID, id uint64, header, payload []byte) []byte {
	f := &outFrame{}
	f.encode(frameHeader{kind: kindRequest, method: method, group: group, id: id}, header, [][]byte{payload})
	return append(f.head, payload...)
}

// resealed returns a frame with its fixed header changed and the checksum made right again.
func resealed(frame []byte, change func(h []byte)) []byte {
	b := bytes.Clone(frame)
	change(b)
	sum := crc32.Checksum(b[:frameHeaderBytes-4], castagnoli)
	binary.LittleEndian.PutUint32(b[frameHeaderBytes-4:], sum)
	return b
}

func TestHostileRequestsEndTheSet(t *testing.T) {
	good := request(methodEcho, 1, 1, []byte("header"), []byte("payload"))
	put := func(at int, v uint32) []byte {
		return resealed(good, func(h []byte) { binary.LittleEndian.PutUint32(h[at:], v) })
	}
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 4
		return b
	}
	for name, sent := range map[string][]byte{
		"zeroes": make([]byte, 100), "text": []byte(strings.Repeat("GET / HTTP/1.1\r\n", 10)),
		"bit in the length": flip(25), "bit in the id": flip(17), "bit in the checksum": flip(37), "bit in the payload's checksum": flip(33), "bit in the header": flip(frameHeaderBytes + 2),
		"header of 4 GiB": put(12, 1<<32-1), "header over the limit": put(12, MaxHeaderBytes+1),
		"payload of 4 GiB": put(24, 1<<32-1), "payload over the limit": put(24, MaxPayloadBytes+1),
		"flags":                 resealed(good, func(h []byte) { h[5] |= 2 }),
		"kind 0":                resealed(good, func(h []byte) { h[4] = 0 }),
		"kind 6":                resealed(good, func(h []byte) { h[4] = 6 }),
		"a response":            resealed(good, func(h []byte) { h[4] = byte(kindResponse) }),
		"a ping":                (&frameHeader{kind: kindPing}).appendTo(nil),
		"a pong":                (&frameHeader{kind: kindPong}).appendTo(nil),
		"a ping with body":      resealed(good, func(h []byte) { h[4] = byte(kindPing) }),
		"an error with payload": resealed(good, func(h []byte) { h[4] = byte(kindError) }),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				m := newMesh(t, simulated(network), 2, nil, conformHandlers)
				lanes := rawSet(t, network, m.addrs[2], 1)
				if _, err := lanes[Data].Write(sent); err != nil {
					t.Fatal(err)
				}
				for lane, nc := range lanes { // all of them end, at once
					within(t, "closing the set", 10*time.Millisecond, func() {
						if b, err := io.ReadAll(nc); len(b) != 0 {
							t.Errorf("lane %d: got %d bytes and %v, want it closed", lane, len(b), err)
						}
					})
				}
				mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho}) // others are not concerned
			})
		})
	}
}

// TestPingOnALoneLane: a ping is answered on the control lane. One that comes on another lane before there is a control
// lane ends the set, and not the process.
func TestPingOnALoneLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		nc := rawLane(t, network, m.addrs[2], 1, Data)
		if _, err := nc.Write((&frameHeader{kind: kindPing}).appendTo(nil)); err != nil {
			t.Fatal(err)
		}
		within(t, "closing the set", 10*time.Millisecond, func() {
			if b, err := io.ReadAll(nc); len(b) != 0 {
				t.Errorf("got %d bytes and %v, want it closed", len(b), err)
			}
		})
		mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho})
	})
}

// TestPartialFrames: frames may arrive byte by byte, and one that never ends costs only its own buffer.
func TestPartialFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		lanes := rawSet(t, network, m.addrs[2], 1)
		frame := request(methodEcho, 1, 7, []byte("header"), []byte("payload"))
		for i := range frame {
			if _, err := lanes[Data].Write(frame[i : i+1]); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Millisecond)
		}
		answer := make([]byte, len(frame))
		if _, err := io.ReadFull(lanes[Data], answer); err != nil {
			t.Fatal(err)
		}
		if h, err := parseFrame(answer); err != nil || h.kind != kindResponse || h.id != 7 || string(answer[frameHeaderBytes:]) != "headerpayload" {
			t.Errorf("answer %+v, %v", h, err)
		}
		if _, err := lanes[Data].Write(frame[:len(frame)-3]); err != nil {
			t.Fatal(err)
		}
		mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho})
		lanes[Data].Close()
		if b, err := io.ReadAll(lanes[Control]); len(b) != 0 {
			t.Errorf("got %d bytes and %v, want the set closed", len(b), err)
		}
	})
}

// TestSilentDialler: who greets and then says nothing, or never opens all lanes, or never greets, is dropped.
func TestSilentDialler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		lanes := rawSet(t, network, m.addrs[2], 1)
		within(t, "dropping a silent set", noticed, func() { io.ReadAll(lanes[Bulk]) })
		mute, err := network.Machine("raw").Dial(context.Background(), m.addrs[2])
		if err != nil {
			t.Fatal(err)
		}
		defer mute.Close()
		within(t, "dropping a connection without hello", 4*time.Second, func() { io.ReadAll(mute) })
		half, err := network.Machine("raw").Dial(context.Background(), m.addrs[2])
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		if err := writeHello(half, hello{layout: helloLayout, code: helloPart, cluster: testCluster, from: 9, nonce: 2}, helloMagic); err != nil {
			t.Fatal(err)
		}
		if _, err := readHello(half, answerMagic); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		keepPinging(half)
		for m.nodes[2].accepting.Load() != 0 {
			if <-time.After(10 * time.Millisecond); time.Since(began) > 4*time.Second {
				t.Fatal("a set with one lane is still open")
			}
		}
		<-time.After(time.Second) // keepPinging ends with its next ping
	})
}

// TestSlowReader: once replies pile up for a peer that asks and does not read, nothing more is read from it, and it is given
// up when that lasts. A peer that has asked for too much before is given up at once.
func TestSlowReader(t *testing.T) {
	for name, pace := range map[string]time.Duration{"steady": 10 * time.Millisecond, "greedy": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { slowReader(t, pace) })
		})
	}
}

func slowReader(t *testing.T, pace time.Duration) {
	network := simnet.New(lan)
	const limit, reply = 1 << 20, 128 << 10
	var handled, most atomic.Int64
	m := newMesh(t, simulated(network), 2, func(c *Config) { c.MaxReplyBytes = limit }, func(tr *Transport) {
		tr.Handle(methodBlocks, termsOf(methodBlocks, Ordered), func(in *Inbound) {
			if handled.Add(1) == 1 && pace == 0 {
				<-time.After(time.Second) // whoever asks without a pause has asked for too much before the first reply
			}
			in.Reply(nil, [][]byte{make([]byte, reply)})
			most.Store(max(most.Load(), in.conn.queuedBytes.Load()))
		})
	})
	lanes := rawSet(t, network, m.addrs[2], 1)
	keepPinging(lanes[Control])
	go func() {
		for id := uint64(1); ; id++ {
			if _, err := lanes[Data].Write(request(methodBlocks, 1, id, nil, nil)); err != nil {
				return
			}
			if pace > 0 {
				<-time.After(pace)
			}
		}
	}()
	<-time.After(5 * time.Second)
	open, bound := m.nodes[2].accepting.Load(), int64(4*limit+2*reply+10_000)
	if pace > 0 {
		bound = limit + 2*reply
	}
	if (open == laneCount) != (pace > 0) {
		t.Errorf("%d connections are open after 5 s", open)
	}
	if n := most.Load(); n > bound || handled.Load() > bound/reply+4 {
		t.Errorf("%d bytes of replies waited, want at most %d; %d requests were handled", n, bound, handled.Load())
	}
	<-time.After(6 * time.Second)
	if open := m.nodes[2].accepting.Load(); open != 0 {
		t.Errorf("%d connections are open after 11 s", open)
	}
}

// TestHostileAnswers: a server that answers nonsense loses the set; answers nobody awaits are skipped.
func TestHostileAnswers(t *testing.T) {
	answers := map[string]struct {
		answer func(h frameHeader) []byte
		ok     bool
	}{
		"unknown id, then the right one": {func(h frameHeader) []byte {
			wrong := resealed(request(1, 1, h.id+100, nil, make([]byte, 100_000)), func(b []byte) { b[4] = byte(kindResponse) })
			return append(wrong, resealed(request(1, 1, h.id, nil, nil), func(b []byte) { b[4] = byte(kindResponse) })...)
		}, true},
		"a request": {func(h frameHeader) []byte { return request(1, 1, h.id, nil, nil) }, false},
		"garbage":   {func(frameHeader) []byte { return []byte(strings.Repeat("no", 100)) }, false},
		"a malformed error": {func(h frameHeader) []byte {
			return resealed(request(1, 1, h.id, []byte("abc"), nil), func(b []byte) { b[4] = byte(kindError) })
		}, false},
	}
	for name, c := range answers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				l, err := network.Machine("raw").Listen(":1")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { <-time.After(time.Millisecond) }() // until the raw server has noticed
				defer l.Close()
				go serveRaw(l, c.answer)
				tr, err := New(Config{Cluster: testCluster, Self: 1, Dial: network.Machine("n1").Dial,
					Resolve: func(storage.NodeID) (string, bool) { return "raw:1", true }})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				resp, err := tr.Call(context.Background(), 2, Data, &Request{Method: 1})
				if (err == nil) != c.ok {
					t.Errorf("%v", err)
				}
				if err == nil {
					resp.Release()
				}
			})
		})
	}
}

// serveRaw greets properly as node 2 and answers requests as told.
func serveRaw(l net.Listener, answer func(frameHeader) []byte) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			h, err := readHello(nc, helloMagic)
			if err != nil {
				return
			}
			h.code, h.from, h.to = helloAccepted, h.to, h.from
			if err := writeHello(nc, h, answerMagic); err != nil {
				return
			}
			answerRaw(nc, answer)
		}()
	}
}

// answerRaw answers the requests on a connection as told until it fails.
func answerRaw(nc net.Conn, answer func(frameHeader) []byte) {
	for {
		var b [frameHeaderBytes]byte
		if _, err := io.ReadFull(nc, b[:]); err != nil {
			return
		}
		f, err := parseFrame(b[:])
		if err != nil || f.kind == kindPing {
			continue
		}
		if _, err := nc.Write(answer(f)); err != nil {
			return
		}
	}
}

func TestHelloLayouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		newer, err := network.Machine("raw").Dial(context.Background(), m.addrs[2])
		if err != nil {
			t.Fatal(err)
		}
		defer newer.Close()
		if err := writeHello(newer, hello{layout: helloLayout + 1, code: 99, from: 9}, helloMagic); err != nil {
			t.Fatal(err)
		}
		if answer, err := readHello(newer, answerMagic); err != nil || answer.code != helloWrongVersion || answer.layout != helloLayout || answer.speaks != known {
			t.Errorf("a newer dialler is answered with %+v, %v", answer, err)
		}
		l, err := network.Machine("raw").Listen(":1")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			_, _ = readHello(nc, helloMagic)
			_ = writeHello(nc, hello{layout: 3}, answerMagic)
		}()
		m.addrs[8] = "raw:1"
		_, err = m.nodes[1].Call(context.Background(), 8, Data, &Request{Method: methodEcho})
		if _, ok := sentError(err); !ok || remoteKind(err) != storage.KindUnsupported ||
			!strings.Contains(err.Error(), "the peer speaks version 3 of the peer protocol, this side version 2: upgrade this side") {
			t.Errorf("a newer server: %v", err)
		}
	})
}

func TestJudge(t *testing.T) {
	good := hello{layout: helloLayout, lane: Data, code: helloPart, cluster: testCluster, from: 9, to: 2, nonce: 1, speaks: known}
	for want, change := range map[helloCode]func(*hello){
		helloAccepted:     func(*hello) {},
		helloWrongVersion: func(h *hello) { h.layout++ },
		helloWrongCluster: func(h *hello) { h.cluster[0]++ },
		helloWrongNode:    func(h *hello) { h.to = 3 },
		helloBadLane:      func(h *hello) { h.lane = laneCount },
	} {
		h := good
		change(&h)
		if got := h.judge(testCluster, 2, known); got != want {
			t.Errorf("%+v: code %d, want %d", h, got, want)
		}
	}
	unnamed := good
	unnamed.from, unnamed.cluster = 0, storage.ClusterID{}
	if got := unnamed.judge(testCluster, 2, known); got != helloBadLane {
		t.Errorf("a set of a node without an id: code %d", got)
	}
	if got := good.judge(storage.ClusterID{}, 0, known); got != helloWithoutNodeID {
		t.Errorf("a node without a cluster answers with code %d", got)
	}
	for _, c := range []struct {
		from      storage.NodeID
		own, says uint32
		want      helloCode
	}{{9, 0, 0, helloAccepted}, {9, 7, 7, helloAccepted}, {9, 7, 0, helloOtherRecovery}, {9, 0, 7, helloOtherRecovery}, {9, 7, 8, helloOtherRecovery}, {0, 7, 0, helloAccepted}} {
		h := good
		h.from, h.recovery = c.from, c.says
		if got := h.follows(c.own); got != c.want {
			t.Errorf("a node %d that follows recovery %d, where %d is followed: code %d, want %d", c.from, c.says, c.own, got, c.want)
		}
	}
	good.cluster = storage.ClusterID{}
	if got := good.judge(testCluster, 2, known); got != helloWrongCluster {
		t.Errorf("a member without a cluster: code %d", got)
	}
}

// TestHelloTexts: the texts of a hello are bounded, and go to logs: what is no plain text is refused.
func TestHelloTexts(t *testing.T) {
	good := hello{layout: helloLayout, code: helloLone, speaker: Speaker{Address: strings.Repeat("a", MaxAddressBytes), Process: "x/1"}, speaks: known}
	b := good.appendTo(nil, helloMagic)
	if h, err := parseHello(b, helloMagic); err != nil || h != good || len(b) != helloBytes {
		t.Fatalf("%d bytes: %+v, %v", len(b), h, err)
	}
	reseal := func(at int, c byte) []byte {
		b := bytes.Clone(b)
		b[at] = c
		binary.LittleEndian.PutUint32(b[helloBytes-4:], crc32.Checksum(b[:helloBytes-4], castagnoli))
		return b
	}
	for name, b := range map[string][]byte{"a line break": reseal(70, '\n'), "an escape": reseal(70, 0x1b), "a byte above ASCII": reseal(70, 0xc3),
		"a length beyond the field": reseal(69+MaxAddressBytes, MaxProcessBytes+1)} {
		if h, err := parseHello(b, helloMagic); err == nil {
			t.Errorf("%s: taken as %+v", name, h)
		}
	}
}

// The golden bytes of docs/format/peer.md.
func TestGoldenBytes(t *testing.T) {
	h := frameHeader{kind: kindRequest, method: methodRead, group: 0x01020304, id: 0x1122334455667788}
	f := &outFrame{}
	f.encode(h, []byte("head"), [][]byte{[]byte("pay"), []byte("load")})
	greeting := hello{layout: 2, lane: Bulk, code: helloPart, cluster: testCluster, from: 3, to: 4, nonce: 0x1122334455667788,
		speaker: Speaker{Instance: 0x0102030405060708, Starts: 9, List: 10, Address: "a:7001", Process: "a/17"},
		speaks:  versions{min: 2, max: 3}}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"frame": {f.head, "53504631" + "01" + "01" + "1100" + "04030201" + "04000000" + "8877665544332211" + "07000000" + "e8977cea" + "7069e3f4" + "c6fe7f9b" + "68656164"},
		"hello": {greeting.appendTo(nil, helloMagic), "5354504545524849" + "0200" + "02" + "01" + "01020300000000000000000000000000" + "03000000" + "04000000" + "8877665544332211" +
			"0807060504030201" + "0900000000000000" + "0a00000000000000" + "06" + "613a37303031" + zeroes(MaxAddressBytes-6) +
			"04" + "612f3137" + zeroes(MaxProcessBytes-4) + "0200" + "0300" + "00000000" + "59ed92d4"},
		"error": {appendError(nil, storage.E("read", storage.KindNotLeader, "group 7", hint(3))),
			"06" + "0300000000000000" + "0400" + "72656164" + "0700" + "67726f75702037" + "0c00" + "6e6f64652033206c65616473"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", name, got, c.want)
		}
	}
}

func zeroes(count int) string { return strings.Repeat("00", count) }

func FuzzFrame(f *testing.F) {
	f.Add(request(1, 2, 3, []byte("h"), []byte("p"))[:frameHeaderBytes])
	f.Add(make([]byte, frameHeaderBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeaderBytes {
			return
		}
		for _, b := range [][]byte{b[:frameHeaderBytes], resealed(b[:frameHeaderBytes], func(h []byte) { copy(h, "SPF1") })} {
			h, err := parseFrame(b)
			if err != nil {
				continue
			}
			if h.headerBytes > MaxHeaderBytes || h.payloadBytes > MaxPayloadBytes || h.headerBytes < 0 || h.payloadBytes < 0 {
				t.Fatalf("lengths out of range: %+v", h)
			}
			if !bytes.Equal(h.appendTo(nil), b) {
				t.Fatalf("%x decodes to %+v, which encodes to %x", b, h, h.appendTo(nil))
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	for _, speaks := range []versions{{}, known, {min: 3, max: 9}, {min: 3, max: 2}} {
		f.Add((&hello{layout: helloLayout, lane: 1, code: helloPart, cluster: testCluster, from: 1, to: 2, nonce: 3, speaks: speaks}).appendTo(nil, helloMagic))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < helloBytes {
			return
		}
		b = bytes.Clone(b[:helloBytes])
		_, _ = parseHello(b, helloMagic)
		copy(b, helloMagic)
		binary.LittleEndian.PutUint32(b[helloBytes-4:], crc32.Checksum(b[:helloBytes-4], castagnoli))
		h, err := parseHello(b, helloMagic)
		if err != nil {
			return // a text, or a range of versions, that it cannot have
		}
		if h.speaks.min > h.speaks.max || h.speaks.min == 0 && h.layout != 0 {
			t.Fatalf("took %v", h.speaks)
		}
		if strings.ContainsFunc(h.speaker.Address+h.speaker.Process, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("took %q, %q", h.speaker.Address, h.speaker.Process)
		}
		if h.judge(testCluster, 2, known) == helloAccepted && (h.layout != helloLayout || h.speaks.common(known) == 0 || h.lane >= laneCount || h.cluster != testCluster && h.from != 0 || h.from == 2) {
			t.Fatalf("accepted %+v", h)
		}
		_ = h.refusal(hello{})
	})
}

func FuzzError(f *testing.F) {
	f.Add(appendError(nil, storage.E("a", storage.KindIO, "b", errors.New("c"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := parseError(1, b)
		if k := storage.KindOf(err); k == storage.KindNone || int(k) > len(storage.Kinds()) {
			t.Fatalf("%x decodes to kind %d", b, k)
		}
		again := parseError(1, appendError(nil, err))
		if storage.KindOf(again) != storage.KindOf(err) {
			t.Fatalf("%v became %v", err, again)
		}
	})
}

func TestBufferClasses(t *testing.T) {
	var p bufferPool
	check := func(n int) {
		class, capacity, ok := classOf(n)
		if !ok || capacity < n || n > 1024 && float64(capacity) > 1.25*float64(n) || class >= classCount {
			t.Fatalf("%d bytes: class %d of %d bytes, %v", n, class, capacity, ok)
		}
		b := p.get(n)
		if len(b.data) != n || cap(b.data) != capacity {
			t.Fatalf("%d bytes: a buffer of %d, capacity %d, want %d", n, len(b.data), cap(b.data), capacity)
		}
		b.release()
	}
	for n := 0; n < 70_000; n += 7 {
		check(n)
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		check(random.IntN(MaxHeaderBytes + MaxPayloadBytes + 1))
	}
	check(MaxHeaderBytes + MaxPayloadBytes)
	if _, _, ok := classOf(64 << 20); ok {
		t.Error("64 MiB have a class")
	}
}

// TestNewerSetReplacesOlder: what a node left behind when it lost track of its connections does not linger.
func TestNewerSetReplacesOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		older := rawSet(t, network, m.addrs[2], 1)
		rawSet(t, network, m.addrs[2], 2)
		within(t, "closing the older set", 10*time.Millisecond, func() { io.ReadAll(older[Data]) })
		if n := m.nodes[2].accepting.Load(); n != laneCount {
			t.Errorf("%d connections are open", n)
		}
	})
}

// TestStrangersDoNotLockOut: connections from unknown peers that say nothing take only a part of the places, and nodes come in
// beside them. Line: handshakes in Transport.accept.
func TestStrangersDoNotLockOut(t *testing.T) {
	m := newMesh(t, loopback(), 2, func(c *Config) {
		c.MaxConnections, c.MaxClientConnections, c.MaxHandshakes, c.HandshakeTimeout = 64, 48, 128, time.Minute
	},
		func(tr *Transport) { tr.Handle(methodRead, termsOf(methodRead, Concurrent), echo) })
	strangers := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 100 {
		nc, err := strangers.DialContext(testContext(t), "tcp", m.addrs[2])
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	resp, err := m.nodes[1].Call(testContext(t), 2, Data, &Request{Method: methodRead, Group: 1})
	if err != nil {
		t.Fatal(err)
	}
	resp.Release()
	if n := m.nodes[2].accepting.Load(); n > 64 {
		t.Errorf("%d connections are open", n)
	}
}
