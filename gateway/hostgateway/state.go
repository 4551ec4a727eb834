package hostgateway

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/blockdev"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/durable"
)

// state is the state directory: gateway.lock, host-id, state-id, cluster.json and one file for each attached volume in
// attachments/. Files are replaced as a whole: written, synced, renamed, and their directory synced.
type state struct {
	dir  string
	lock *os.File
}

// record is an attached volume as it is written down.
type record struct {
	Volume     string               `json:"volume"`
	VolumeID   storage.VolumeID     `json:"volume_id,omitempty"`
	Attachment storage.AttachmentID `json:"attachment,omitempty"` // 0: being asked for
	// Own: this gateway has made the attachment, and ends it.
	Own        bool               `json:"own,omitempty"`
	Generation storage.Generation `json:"generation,omitempty"`
	Access     storage.Access     `json:"access"`
	ReadOnly   bool               `json:"read_only,omitempty"`
	Via        host.Via           `json:"via"`
	Device     string             `json:"device,omitempty"`
	// Boot is the boot of the host that Device and Identity are of.
	Boot string `json:"boot,omitempty"`
	// Identity is what Device is told by from another that has got its path since.
	Identity blockdev.Identity `json:"identity,omitzero"`
	Since    time.Time         `json:"since,omitzero"`
	// Gone: the device is removed; what is left to do is to end the attachment.
	Gone bool `json:"gone,omitempty"`
}

// clusterFile is what is known of the cluster, so that a gateway starts while the API does not answer.
type clusterFile struct {
	Cluster string                    `json:"cluster"`
	Nodes   map[storage.NodeID]string `json:"nodes"` // peer addresses
	APIs    []string                  `json:"apis,omitempty"`
}

const maxStateFileBytes = 1 << 20

// openState opens the directory, and waits for a predecessor that is ending to let it go.
func openState(ctx context.Context, dir string) (*state, error) {
	fail := func(kind storage.Kind, err error) (*state, error) {
		return nil, storage.E("open", kind, "state directory "+dir, err)
	}
	// The real path: the kernel's table of mounts shows no other, and the keeper works in another directory.
	err := os.MkdirAll(dir, 0o700)
	real := dir
	if err == nil {
		real, err = filepath.Abs(dir)
	}
	if err == nil {
		real, err = filepath.EvalSymlinks(real)
	}
	if err != nil {
		return fail(storage.KindInvalid, err)
	}
	dir = real
	for _, d := range []string{filepath.Join(dir, "attachments"), filepath.Join(dir, "mnt")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fail(storage.KindInvalid, err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "gateway.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(storage.KindInvalid, err)
	}
	for deadline := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &state{dir: dir, lock: lock}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil || time.Now().After(deadline) {
			_ = lock.Close()
			return fail(storage.KindConflict, fmt.Errorf("another gateway uses it (%w); one runs per host", err))
		}
		_ = clock.Sleep(ctx, 20*time.Millisecond) // the next turn sees the end
	}
}

// lockPatience is how long a killed gateway may take to be gone.
const lockPatience = 10 * time.Second

func (s *state) close() error { return s.lock.Close() }

func (s *state) mountDir() string { return filepath.Join(s.dir, "mnt") }

func (s *state) recordPath(volume string) string {
	return filepath.Join(s.dir, "attachments", volume+".json")
}

// hostID returns the host's id: as given, or as kept, or a new one that is kept.
func (s *state) hostID(given string) (string, error) {
	path := filepath.Join(s.dir, "host-id")
	if given != "" {
		return given, nil
	}
	if b, err := os.ReadFile(path); err == nil {
		if id := strings.TrimSpace(string(b)); id != "" {
			return id, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", storage.E("read", storage.KindIO, path, err)
	}
	name, err := os.Hostname()
	if err != nil || name == "" || strings.Trim(name, hostIDCharacters) != "" {
		name = "host"
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	id := name[:min(len(name), 100)] + "-" + hex.EncodeToString(random[:])
	return id, durable.WriteFile(path, []byte(id+"\n"))
}

// machine returns an id that tells this machine, in this boot, from others and from copies of it. Its first part identifies
// the machine and this state directory, and a copy shares it. The second part, after a dot, identifies the boot and the
// directory's inode, and a copy differs in it. A gateway that is started again in the same boot has the same id.
func (s *state) machine() (storage.Machine, error) {
	path := filepath.Join(s.dir, "state-id")
	id, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id = []byte(rand.Text() + "\n")
		if err := durable.WriteFile(path, id); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", storage.E("read", storage.KindIO, path, err)
	}
	machine, _ := os.ReadFile("/etc/machine-id") // not in every container
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", storage.E("read", storage.KindIO, "the boot's id", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.dir, &st); err != nil {
		return "", storage.E("look at", storage.KindIO, s.dir, err)
	}
	return machineOf(string(id)+string(machine), string(boot)+strconv.FormatUint(st.Ino, 10)), nil
}

func machineOf(kept, now string) storage.Machine {
	short := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:12])
	}
	return storage.Machine(short(kept) + "." + short(now))
}

func (s *state) readCluster() (c clusterFile, ok bool, err error) {
	err = s.readJSON(filepath.Join(s.dir, "cluster.json"), &c)
	if errors.Is(err, fs.ErrNotExist) {
		return c, false, nil
	}
	return c, err == nil, err
}

func (s *state) writeCluster(c clusterFile) error {
	return s.writeJSON(filepath.Join(s.dir, "cluster.json"), c)
}

// records returns what is written down, by volume. A file that cannot be read is an error: its device may be in use.
func (s *state) records() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "attachments"))
	if err != nil {
		return nil, storage.E("read", storage.KindIO, "state directory "+s.dir, err)
	}
	var list []record
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue // a temporary file of a write that did not end
		}
		var r record
		path := filepath.Join(s.dir, "attachments", e.Name())
		if err := s.readJSON(path, &r); err != nil {
			return nil, storage.E("read", storage.KindCorrupt, path, err)
		}
		if storage.CheckVolumeName(r.Volume) != nil || s.recordPath(r.Volume) != path {
			return nil, storage.E("read", storage.KindCorrupt, path, errors.New("it speaks of another volume"))
		}
		list = append(list, r)
	}
	return list, nil
}

func (s *state) writeRecord(r record) error { return s.writeJSON(s.recordPath(r.Volume), r) }

func (s *state) removeRecord(volume string) error {
	path := s.recordPath(volume)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storage.E("remove", storage.KindIO, path, err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

func (s *state) readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || info.Size() > maxStateFileBytes {
		return errors.Join(err, fmt.Errorf("%s is larger than any that was written", path))
	}
	return json.NewDecoder(f).Decode(v)
}

func (s *state) writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return storage.E("write", storage.KindInternal, path, err)
	}
	return durable.WriteFile(path, append(b, '\n'))
}
