package control

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// aloneFor is the variable that names the test for which a process was started; see alone.
const aloneFor = "STORAGED_TEST_ALONE"

// alone reports whether this process was started for the test, which may then change what is the whole process's. Otherwise it has another
// process run the test: in this one the limit would also meet the file in which `go test` notes what the tests open.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneFor) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), aloneFor+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")) {
		t.Errorf("alone: %v\n%s", err, out)
	}
	return false
}

// limitFiles lets files of this process become no longer than so many bytes, until release is called. As on a full disk a write takes what fits and
// is refused then, with EFBIG. Only for tests that are alone.
func limitFiles(t *testing.T, bytes uint64) (release func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var was unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: was.Max})
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLogIsMadeWhole: what a node could write of the file of its log and votes when there was no room, or the power was cut, is not taken for it
// later. The next attempt makes it, and nothing is left of the one before.
//
// Guards, in files.go: that makeLog makes it under another name, and removes what is there of it. With the file made in its place, or
// either Remove taken out, a case fails.
func TestLogIsMadeWhole(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, bytes := range []uint64{1, 4096, 12288, 16384, 20000} {
		dir := t.TempDir()
		release := limitFiles(t, bytes)
		_, _, err := openFiles(dir, hclog.NewNullLogger())
		release()
		if err == nil {
			t.Fatalf("there was room for all in %d bytes: the test shows nothing", bytes)
		}
		if left, err := filepath.Glob(filepath.Join(dir, "*.*")); err != nil || len(left) > 0 {
			t.Errorf("files of %d bytes: left are %v (%v)", bytes, left, err)
		}
		if err := os.WriteFile(filepath.Join(dir, logFile+newSuffix), make([]byte, bytes), 0o600); err != nil { // a power cut
			t.Fatal(err)
		}
		for range 2 {
			log, _, err := openFiles(dir, hclog.NewNullLogger())
			if err != nil {
				t.Fatalf("files of %d bytes: with room: %v", bytes, err)
			}
			if err := errors.Join(log.StoreLog(&raft.Log{Index: 1, Term: 1}), log.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	path, elsewhere := filepath.Join(dir, logFile), filepath.Join(dir, "written in its place")
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	if err := makeLog(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("it is made under its name")
	}
}

// TestLogOnADiskThatIsNotThere: a log that is a link to nothing is no log that has to be made (tried: with os.Stat alone the node begins
// with an empty one, and forgets its votes).
func TestLogOnADiskThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "mount", logFile), filepath.Join(dir, logFile)); err != nil {
		t.Fatal(err)
	}
	_, _, err := openFiles(dir, hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), "is its file system mounted?") {
		t.Errorf("it is opened: %v", err)
	}
	if at, err := os.Readlink(filepath.Join(dir, logFile)); err != nil || filepath.Base(filepath.Dir(at)) != "mount" {
		t.Errorf("the link is %s, %v", at, err)
	}
}

// TestUnfinishedSnapshotsOfThisNode: a data directory's name is no pattern.
func TestUnfinishedSnapshotsOfThisNode(t *testing.T) {
	top := t.TempDir()
	for _, name := range []string{"disk[0]", "disk0", "disk["} {
		if err := os.MkdirAll(filepath.Join(top, name, snapshotDir, "2-10-7.tmp"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropUnfinished(filepath.Join(top, "disk[0]", snapshotDir), "2-1-"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]bool{"disk[0]": false, "disk0": true, "disk[": false} {
		if name != "disk0" {
			log, _, err := openFiles(filepath.Join(top, name), hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			_ = log.Close()
		}
		if _, err := os.Stat(filepath.Join(top, name, snapshotDir, "2-10-7.tmp")); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGrowWithoutRoom: bbolt says in text alone that it could not make its file longer. That is what noRoom looks for, and only with the system's
// words for a lack of room.
func TestGrowWithoutRoom(t *testing.T) {
	if !alone(t) {
		return
	}
	log, _, err := openFiles(t.TempDir(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	large := &raft.Log{Index: 1, Term: 1, Data: bytes.Repeat([]byte{1}, 1<<20)}
	release := limitFiles(t, 64<<10)
	err = log.StoreLog(large)
	release()
	if err == nil || !strings.HasPrefix(err.Error(), notResized) || !strings.HasSuffix(err.Error(), ": "+syscall.EFBIG.Error()) || errors.Is(err, syscall.EFBIG) {
		t.Fatalf("bbolt says %v", err)
	}
	if noRoom(err) {
		t.Errorf("%v is taken for a lack of room", err)
	}
	for _, lack := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if said := strings.Replace(err.Error(), syscall.EFBIG.Error(), lack.Error(), 1); !noRoom(errors.New(said)) {
			t.Errorf("%s: not taken for a lack of room", said)
		}
		if noRoom(errors.New("file sync error: " + lack.Error())) {
			t.Errorf("a sync that says %v is repeated", lack)
		}
	}
	if err := log.StoreLog(large); err != nil {
		t.Errorf("with room: %v", err)
	}
}

// TestUnfinishedSnapshotsAreRemoved: what a snapshot leaves that found no room is removed, else each attempt, one a minute, takes some of it; so is
// at the start what a process left that ended. Guards both calls of dropUnfinished; each was taken out once.
func TestUnfinishedSnapshotsAreRemoved(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	in := filepath.Join(dir, snapshotDir)
	left := func(when string, want int) {
		t.Helper()
		if names, err := filepath.Glob(filepath.Join(in, "*")); err != nil || len(names) != want {
			t.Errorf("%s: %v (%v), want %d", when, names, err, want)
		}
	}
	log, files, err := openFiles(dir, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	sealed := sealedSnapshots{SnapshotStore: files, dir: in, noteConfig: func(uint64) {}}
	create := func(index uint64) (raft.SnapshotSink, error) {
		_, transport := raft.NewInmemTransport("")
		return sealed.Create(1, index, 3, raft.Configuration{}, 1, transport)
	}
	release := limitFiles(t, 0)
	_, err = create(7)
	release()
	if err == nil {
		t.Fatal("there was room: the test shows nothing")
	}
	left("after one without room", 0)
	sink, err := create(8)
	if err != nil {
		t.Fatal(err)
	}
	release = limitFiles(t, 0)
	_, err = create(9)
	release()
	if err == nil {
		t.Fatal("there was room: the test shows nothing")
	}
	left("one is written, another found no room", 1)
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := create(10); err != nil { // and the process ends
		t.Fatal(err)
	}
	left("the process ends while it writes one", 2)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if log, _, err = openFiles(dir, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	left("after a start", 1)
}
