package nbd_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/storaged/storaged/nbd"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestTranscripts plays testdata/*.txt. Lines that begin with ">" are sent, "<" is what the server said until it had
// nothing more to say, "#" and blank lines are kept. Bytes are written by hand here, so that a mistake in the package's
// own encoding shows.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(want)) })
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("transcript (-file +now):\n%s", diff)
			}
		})
	}
}

// play runs one transcript against a server whose volume "v" has data in its first 8 KiB and a hole behind.
func play(t *testing.T, script string) string {
	f := newFixture(t, nil)
	f.volume.SetInfo(func(i *nbd.ExportInfo) { i.Resizable = false })
	f.volume.Store(pattern(8192, 1), 0)
	f.volume.MarkClean()
	f.volume.Store(pattern(4096, 2), 4096)
	f.backend.Add("other", 8192)
	readonly := f.backend.Add("readonly", 8192)
	readonly.SetInfo(func(i *nbd.ExportInfo) { i.ReadOnly = true })

	p := &peer{conn: f.pipe(), reads: make(map[uint64]int)}
	defer func() { _ = p.conn.Close() }()
	p.wg.Go(p.collect)
	var out strings.Builder
	said := func() {
		synctest.Wait()
		for _, line := range p.decode() {
			fmt.Fprintf(&out, "< %s\n", line)
		}
	}
	started := false
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "<") {
			continue
		}
		if !started && strings.HasPrefix(line, ">") {
			started = true
			said()
		}
		out.WriteString(line)
		if command, ok := strings.CutPrefix(line, "> "); ok {
			if err := p.send(strings.TrimSpace(command)); err != nil {
				fmt.Fprintf(&out, "< cannot send: the connection is closed\n")
			}
			said()
		}
	}
	_ = p.conn.Close()
	p.wg.Wait()
	return out.String()
}

// peer is the client of a transcript.
type peer struct {
	conn     net.Conn
	wg       sync.WaitGroup
	mu       sync.Mutex
	received []byte // guarded by mu; not decoded yet
	ended    error  // guarded by mu

	greeted, transmitting, extended, padded, named bool
	structured                                     bool
	reads                                          map[uint64]int // cookie -> length of a READ
}

// collect keeps what the server sends.
func (p *peer) collect() {
	b := make([]byte, 1<<16)
	for {
		n, err := p.conn.Read(b)
		p.mu.Lock()
		p.received = append(p.received, b[:n]...)
		p.ended = err
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

var optionNames = map[string]uint32{"EXPORT_NAME": 1, "ABORT": 2, "LIST": 3, "STARTTLS": 5, "INFO": 6, "GO": 7,
	"STRUCTURED_REPLY": 8, "LIST_META": 9, "SET_META": 10, "EXTENDED_HEADERS": 11}

var commandNumbers = map[string]uint16{"read": 0, "write": 1, "disc": 2, "flush": 3, "trim": 4, "cache": 5, "zero": 6,
	"status": 7, "resize": 8}

var commandFlagBits = map[string]uint16{"fua": 1, "nohole": 2, "df": 4, "one": 8, "fast": 16, "payload": 32}

// send performs one line:
//
//	flags 3                        client flags
//	raw 0011aabb                   bytes
//	option NAME|number [hex]       with data
//	name EXPORT | go EXPORT [info...] | info EXPORT [info...]
//	listmeta EXPORT [query...] | setmeta EXPORT [query...]
//	read|write|... COOKIE OFFSET LENGTH [flag...]   a write, and with extended headers what
//	                               is flagged "payload", is followed by LENGTH bytes; with id=N by a list of contexts
//	close
func (p *peer) send(line string) error {
	words := strings.Fields(line)
	args := words[1:]
	switch words[0] {
	case "close":
		return p.conn.Close()
	case "raw":
		b, err := hex.DecodeString(strings.Join(args, ""))
		if err != nil {
			panic(err)
		}
		return p.write(b)
	case "flags":
		p.padded = number(args[0])&2 == 0
		return p.write(be32(nil, uint32(number(args[0]))))
	case "option":
		data, err := hex.DecodeString(strings.Join(args[1:], ""))
		if err != nil {
			panic(err)
		}
		id, ok := optionNames[args[0]]
		if !ok {
			id = uint32(number(args[0]))
		}
		return p.option(id, data)
	case "name":
		p.named = true
		return p.option(1, []byte(args[0]))
	case "go", "info":
		data := binary.BigEndian.AppendUint16(str(nil, unquote(args[0])), uint16(len(args)-1))
		for _, a := range args[1:] {
			data = binary.BigEndian.AppendUint16(data, uint16(number(a)))
		}
		return p.option(map[string]uint32{"go": 7, "info": 6}[words[0]], data)
	case "listmeta", "setmeta":
		data := be32(str(nil, unquote(args[0])), uint32(len(args)-1))
		for _, a := range args[1:] {
			data = str(data, a)
		}
		return p.option(map[string]uint32{"listmeta": 9, "setmeta": 10}[words[0]], data)
	}
	return p.command(words[0], args)
}

func (p *peer) command(name string, args []string) error {
	cmd, ok := commandNumbers[name]
	if !ok {
		cmd = uint16(number(name))
	}
	cookie, offset, length := number(args[0]), number(args[1]), number(args[2])
	var flags uint16
	var ids []byte
	for _, a := range args[3:] {
		if id, ok := strings.CutPrefix(a, "id="); ok {
			ids = be32(ids, uint32(number(id)))
		} else if bit, ok := commandFlagBits[a]; ok {
			flags |= bit
		} else {
			flags |= uint16(number(a))
		}
	}
	var payload []byte
	switch {
	case ids != nil:
		payload = append(binary.BigEndian.AppendUint64(nil, length), ids...)
		length = uint64(len(payload))
	case p.extended && flags&32 != 0, !p.extended && cmd == 1:
		payload = pattern(int(length), byte(cookie))
	}
	if cmd == 0 {
		p.reads[cookie] = int(length)
	}
	b := be32(nil, map[bool]uint32{false: 0x25609513, true: 0x21e41c71}[p.extended])
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	if p.extended {
		b = binary.BigEndian.AppendUint64(b, length)
	} else {
		b = be32(b, uint32(length))
	}
	return p.write(append(b, payload...))
}

func (p *peer) option(id uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, 0x49484156454F5054)
	b = be32(be32(b, id), uint32(len(data)))
	return p.write(append(b, data...))
}

func (p *peer) write(b []byte) error {
	_, err := p.conn.Write(b)
	return err
}

func be32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func str(b []byte, s string) []byte  { return append(be32(b, uint32(len(s))), s...) }

func unquote(s string) string { return strings.Trim(s, `"`) }

func number(s string) uint64 {
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return v
}

// decode takes apart what has been received, one line a message.
func (p *peer) decode() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for len(p.received) > 0 {
		b := &reader{p.received}
		line, ok := p.message(b)
		if !ok {
			lines = append(lines, fmt.Sprintf("incomplete %x", p.received))
			p.received = nil
			break
		}
		p.received = b.b
		lines = append(lines, line)
	}
	if p.ended != nil {
		if errors.Is(p.ended, io.EOF) {
			lines = append(lines, "closed")
		}
		p.ended = nil
	}
	return lines
}

// reader takes big-endian numbers from bytes; short is sticky through ok.
type reader struct{ b []byte }

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		panic(errShort)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

var errShort = errors.New("short")

func (p *peer) message(b *reader) (line string, ok bool) {
	defer func() {
		if r := recover(); r == errShort {
			ok = false
		} else if r != nil {
			panic(r)
		}
	}()
	switch {
	case !p.greeted:
		p.greeted = true
		return fmt.Sprintf("%s %s flags=%d", b.take(8), b.take(8), b.u16()), true
	case p.named:
		p.named, p.transmitting = false, true
		line = fmt.Sprintf("size=%d flags=%#x", b.u64(), b.u16())
		if p.padded {
			line += fmt.Sprintf(" padding=%d", len(bytes.Trim(b.take(124), "x")))
		}
		return line, true
	case !p.transmitting:
		return p.optionReply(b), true
	default:
		return p.commandReply(b), true
	}
}

var replyNames = map[uint32]string{1: "ACK", 2: "SERVER", 3: "INFO", 4: "META_CONTEXT", 1<<31 + 1: "ERR_UNSUP",
	1<<31 + 2: "ERR_POLICY", 1<<31 + 3: "ERR_INVALID", 1<<31 + 5: "ERR_TLS_REQD", 1<<31 + 6: "ERR_UNKNOWN",
	1<<31 + 7: "ERR_SHUTDOWN", 1<<31 + 9: "ERR_TOO_BIG", 1<<31 + 10: "ERR_EXT_HEADER_REQD"}

func (p *peer) optionReply(b *reader) string {
	if magic := b.u64(); magic != 0x3e889045565a9 {
		return fmt.Sprintf("bad magic %#x", magic)
	}
	option, kind := b.u32(), b.u32()
	d := &reader{b.take(int(b.u32()))}
	line := fmt.Sprintf("option=%d %s", option, replyNames[kind])
	switch {
	case kind == 1:
		switch option {
		case 7:
			p.transmitting = true
		case 8:
			p.structured = true
		case 11:
			p.extended = true
		}
	case kind == 2:
		line += fmt.Sprintf(" %q", d.take(int(d.u32())))
	case kind == 3:
		switch info := d.u16(); info {
		case 0:
			line += fmt.Sprintf(" size=%d flags=%#x", d.u64(), d.u16())
		case 3:
			line += fmt.Sprintf(" blocks=%d,%d,%d", d.u32(), d.u32(), d.u32())
		default:
			line += fmt.Sprintf(" %d=%q", info, d.take(len(d.b)))
		}
	case kind == 4:
		line += fmt.Sprintf(" id=%d %q", d.u32(), d.take(len(d.b)))
	default:
		line += fmt.Sprintf(" %q", d.take(len(d.b)))
	}
	if len(d.b) > 0 {
		line += fmt.Sprintf(" and %x", d.b)
	}
	return line
}

func data(b []byte) string { return fmt.Sprintf("%d bytes crc=%08x", len(b), crc32.ChecksumIEEE(b)) }

func (p *peer) commandReply(b *reader) string {
	var line string
	var flags, kind uint16
	var d *reader
	switch magic := b.u32(); magic {
	case 0x67446698:
		errno, cookie := b.u32(), b.u64()
		line = fmt.Sprintf("cookie=%d simple error=%d", cookie, errno)
		if n, read := p.reads[cookie]; read && errno == 0 {
			line += " " + data(b.take(n))
		}
		return line
	case 0x668e33ef:
		flags, kind = b.u16(), b.u16()
		line = fmt.Sprintf("cookie=%d chunk", b.u64())
		d = &reader{b.take(int(b.u32()))}
	case 0x6e8a278c:
		flags, kind = b.u16(), b.u16()
		line = fmt.Sprintf("cookie=%d offset=%d chunk", b.u64(), b.u64())
		d = &reader{b.take(int(b.u64()))}
	default:
		return fmt.Sprintf("bad magic %#x", magic)
	}
	switch kind {
	case 0:
		line += " NONE"
	case 1:
		line += fmt.Sprintf(" DATA %d %s", d.u64(), data(d.take(len(d.b))))
	case 2:
		line += fmt.Sprintf(" HOLE %d %d", d.u64(), d.u32())
	case 5:
		line += fmt.Sprintf(" STATUS id=%d", d.u32())
		for len(d.b) > 0 {
			line += fmt.Sprintf(" %d:%d", d.u32(), d.u32())
		}
	case 6:
		line += fmt.Sprintf(" STATUS_EXT id=%d count=%d", d.u32(), d.u32())
		for len(d.b) > 0 {
			line += fmt.Sprintf(" %d:%d", d.u64(), d.u64())
		}
	case 1<<15 + 1:
		line += fmt.Sprintf(" ERROR %d %q", d.u32(), d.take(int(d.u16())))
	default:
		line += fmt.Sprintf(" type %d", kind)
	}
	if len(d.b) > 0 {
		line += fmt.Sprintf(" and %x", d.b)
	}
	if flags&1 != 0 {
		line += " done"
	}
	return line
}
