package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
)

// A recovery makes the catalog begin anew on one node, when the majority of its voters is lost for good, with what that node has of it. It
// has a number, drawn at random, which every node that goes on is given. Nodes with different numbers exchange nothing (peer.Config). So
// voters of before that come back after all, even a majority of them, do nothing to those that went on without them.
//
// A directory is changed in steps that may be repeated. From the first to the last its identity is unfinished, and no node runs on it. The
// library's own RecoverCluster is not used: it keeps the index and the ids, and fences nobody.

// Copy is what the directory of a stopped node has of the catalog.
type Copy struct {
	Identity Identity
	// State has all entries of the log applied, also those that may never have been committed: they are from now on. nil: it could not
	// be read.
	State *catalog.State
	// Index and Term are those of the last entry.
	Index, Term uint64
	// Voters are the nodes that vote by the newest configuration in the log.
	Voters []storage.NodeID

	term uint64 // the highest that the node knows; >= Term
	seen uint64 // the highest index that the node knows of; >= Index
}

// ReadCopy reads what a stopped node has of the catalog, and changes nothing of it. The caller holds the lock of the node's store.
// KindNotFound: there is nothing. KindCorrupt: it cannot be read to its end.
func ReadCopy(dir string) (_ *Copy, err error) {
	id, err := LoadIdentity(vfs.Default, dir)
	if err != nil {
		return nil, err
	}
	c := &Copy{Identity: id, State: catalog.New()}
	if _, err := os.Stat(filepath.Join(dir, logFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, storage.E("read catalog in", storage.KindNotFound, dir, errors.New("there is no log of it"))
	}
	bolt, snaps, err := openFiles(dir, hclog.NewNullLogger())
	if err != nil {
		return nil, storage.E("open catalog", storage.KindIO, dir, err)
	}
	defer func() { err = errors.Join(err, bolt.Close()) }()
	addresses, err := openBook(vfs.Default, dir)
	if err != nil {
		return nil, err
	}
	if err := c.readSnapshot(sealedSnapshots{SnapshotStore: snaps, noteConfig: func(uint64) {}}); err != nil {
		return nil, err
	}
	if err := c.readLog(bolt); err != nil {
		return nil, err
	}
	c.seen = max(c.Index, addresses.index)
	if !c.State.Initialised() {
		return nil, storage.E("read catalog in", storage.KindNotFound, dir, errors.New("nobody has told this node of it yet"))
	}
	return c, nil
}

// UnreadCopy returns a Copy of a directory whose catalog cannot be read: it has no State, and is of use to begin with another copy.
func UnreadCopy(dir string) (*Copy, error) {
	id, err := LoadIdentity(vfs.Default, dir)
	if err != nil {
		return nil, err
	}
	addresses, err := openBook(vfs.Default, dir)
	if err != nil {
		return nil, err
	}
	return &Copy{Identity: id, seen: addresses.index}, nil
}

// readSnapshot begins with the newest snapshot that can be read, as the library does.
func (c *Copy) readSnapshot(snaps sealedSnapshots) error {
	list, err := snaps.List()
	if err != nil {
		return storage.E("read", storage.KindIO, "snapshots of the catalog", err)
	}
	var errs []error
	for _, m := range list {
		meta, content, err := snaps.Open(m.ID)
		if err == nil {
			var state *catalog.State
			state, err = catalog.Restore(content)
			if err = errors.Join(err, content.Close()); err == nil {
				c.State, c.Index, c.Term, c.Voters = state, meta.Index, meta.Term, votersOf(meta.Configuration)
				return nil
			}
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return storage.E("read", storage.KindCorrupt, "snapshots of the catalog", errors.Join(errs...))
	}
	return nil
}

func votersOf(c raft.Configuration) (ids []storage.NodeID) {
	for _, s := range c.Servers {
		if id, err := runner.ParseNodeAddress(s.Address); err == nil && s.Suffrage == raft.Voter {
			ids = append(ids, id)
		}
	}
	return ids
}

// readLog applies what the log has above the snapshot.
func (c *Copy) readLog(bolt *raftboltdb.BoltStore) error {
	first, err := bolt.FirstIndex()
	if err != nil {
		return storage.E("read", storage.KindIO, "log of the catalog", err)
	}
	last, err := bolt.LastIndex()
	if err != nil {
		return storage.E("read", storage.KindIO, "log of the catalog", err)
	}
	if last > c.Index && first > c.Index+1 {
		return storage.E("read", storage.KindCorrupt, "log of the catalog", fmt.Errorf("it begins at %d, and the snapshot before it ends at %d", first, c.Index))
	}
	for i := c.Index + 1; i <= last; i++ {
		var l raft.Log
		if err = bolt.GetLog(i, &l); err == nil {
			err = unsealEntry(i, &l)
		}
		if err != nil {
			return storage.E("read", storage.KindCorrupt, fmt.Sprintf("entry %d of the catalog", i), err)
		}
		switch l.Type {
		case raft.LogCommand:
			cmd, err := catalog.DecodeEntry(l.Data)
			if err != nil {
				return unreadable(i, err)
			}
			c.State.ApplyCommand(i, cmd)
		case raft.LogConfiguration:
			c.Voters = votersOf(raft.DecodeConfiguration(l.Data))
		}
		c.Index, c.Term = i, l.Term
	}
	c.term = c.Term
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} {
		b, err := bolt.Get([]byte(key))
		if err != nil {
			if err.Error() == raftboltdb.ErrKeyNotFound.Error() {
				continue
			}
			return storage.E("read", storage.KindIO, "the catalog's "+key, err)
		}
		n, err := unsealNumber([]byte(key), b)
		if err != nil {
			return err
		}
		c.term = max(c.term, n)
	}
	return nil
}

// begun returns the state that the catalog would begin anew with on this node, and its index; see Begin.
func (c *Copy) begun(begin *catalog.State, lost []storage.NodeID, at time.Time) (*catalog.State, error) {
	known, seen := c.State, c.seen
	switch {
	case known == nil && c.Identity.Recovery != 0 && !c.Identity.Unfinished:
		// Its own copy would say which numbers were given out since that recovery.
		return nil, storage.E("recover", storage.KindConflict, "node "+c.Identity.Node.String(), fmt.Errorf("it has been through recovery %08x already, and its copy of the catalog cannot be "+
			"read: begin on another node that has, or numbers may be given out twice", c.Identity.Recovery))
	case known != nil:
		seen = max(seen, known.Applied())
	}
	state, err := begin.Recovered(catalog.Beyond(max(seen, begin.Applied()), at), lost, known, at)
	if err != nil {
		return nil, err
	}
	self := c.Identity.Node
	if n, ok := state.Node(self); !ok || n.State == storage.NodeRemoved {
		return nil, storage.E("recover", storage.KindInvalid, "node "+self.String(), errors.New("the catalog would begin on a node that is not in it, or is lost"))
	}
	return state, nil
}

// MayBegin returns why Begin would be refused; nil: it would not.
func (c *Copy) MayBegin(begin *catalog.State, lost []storage.NodeID, at time.Time) error {
	_, err := c.begun(begin, lost, at)
	return err
}

// keptName is where a directory keeps what it had of the catalog before a recovery.
func keptName(dir string, recovery uint32) string {
	return filepath.Join(dir, fmt.Sprintf("before-recovery-%08x", recovery))
}

// Begin makes the directory of a stopped node the one that the catalog begins anew with, as the only voter, without the lost nodes.
// begin is the state to begin with: c.State, or that of an older copy. recovery is the number that others follow then, not 0. What the node
// had before is kept in the file that is returned, as a copy; empty if it could not be read. Again, also after an interruption: it begins anew once more. The caller holds the lock of the
// node's store.
func (c *Copy) Begin(dir string, begin *catalog.State, lost []storage.NodeID, recovery uint32, at time.Time) (kept string, err error) {
	self := c.Identity.Node
	state, err := c.begun(begin, lost, at)
	if err != nil {
		return "", err
	}
	id := c.Identity
	id.Bootstrap, id.Recovery, id.Unfinished = nil, recovery, true
	if err := writeIdentity(vfs.Default, dir, id); err != nil {
		return "", err
	}
	if c.State != nil {
		before, err := c.State.Snapshot()
		if err != nil {
			return "", err
		}
		kept = keptName(dir, recovery) + ".catalog"
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) { // else an attempt before has kept what there was
			if err := durable.WriteFile(kept, before); err != nil {
				return "", err
			}
		}
	} else if err := setAside(dir, keptName(dir, recovery), logFile); err != nil { // it cannot be read: neither can the library
		return "", err
	}
	if err := beginFiles(dir, state, self, state.Applied(), c.term+1); err != nil {
		return "", storage.E("recover", storage.KindIO, dir, err)
	}
	id.Unfinished = false
	return kept, writeIdentity(vfs.Default, dir, id)
}

// beginFiles makes a snapshot of the state all that there is: at index, in a term that nobody has known, with self as the only voter.
func beginFiles(dir string, state *catalog.State, self storage.NodeID, index, term uint64) (err error) {
	bolt, snaps, err := openFiles(dir, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bolt.Close()) }()
	list, err := snaps.List()
	if err != nil {
		return err
	}
	for _, m := range list { // of two, the library takes the one with the higher term, and drops the other
		term = max(term, m.Term+1)
	}
	// The library takes no term from a snapshot. Below it, it would elect itself in a term that is over.
	key := []byte("CurrentTerm")
	if err := bolt.Set(key, sealValue(key, binary.BigEndian.AppendUint64(nil, term))); err != nil {
		return err
	}
	sealed := sealedSnapshots{SnapshotStore: snaps, dir: filepath.Join(dir, snapshotDir), noteConfig: func(uint64) {}}
	config := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: ServerID(self), Address: runner.NodeAddress(self)}}}
	sink, err := sealed.Create(runner.SnapshotVersion, index, term, config, index, encodesPeers{})
	if err != nil {
		return err
	}
	if err := (fsmSnapshot{state}).Persist(sink); err != nil {
		return err
	}
	first, err := bolt.FirstIndex()
	if err != nil {
		return err
	}
	if first > 0 {
		last, err := bolt.LastIndex()
		if err != nil {
			return err
		}
		if err := bolt.DeleteRange(first, last); err != nil {
			return err
		}
	}
	// An older snapshot has the old voters in it, and the library takes it when it cannot read the newest.
	if list, err = snaps.List(); err != nil {
		return err
	}
	for _, m := range list {
		if m.Index != index {
			if err := os.RemoveAll(filepath.Join(sealed.dir, m.ID)); err != nil {
				return err
			}
		}
	}
	return durable.SyncDir(sealed.dir)
}

// encodesPeers is all that a snapshot store wants of a transport.
type encodesPeers struct{ raft.Transport }

// EncodePeer implements raft.Transport.
func (encodesPeers) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// Follow has a stopped node follow a recovery that was begun on another one: it forgets its own copy of the catalog, with its votes, and gets
// that of the others when it is started. What it had is kept in the directory that is returned. The data of its groups stays. Again, also
// after an interruption: it goes on. The caller holds the lock of the node's store.
func Follow(dir string, recovery uint32) (kept string, err error) {
	id, err := LoadIdentity(vfs.Default, dir)
	if err != nil {
		return "", err
	}
	kept = keptName(dir, recovery)
	if id.Recovery == recovery && !id.Unfinished {
		return kept, nil
	}
	if _, err := os.Lstat(kept + ".catalog"); err == nil {
		return "", storage.E("follow", storage.KindConflict, dir, fmt.Errorf("recovery %08x began here, and did not end: nothing but this directory has its catalog. Run it once more as the "+
			"first node, with --lost", recovery))
	}
	// Nobody may run with a log of before and the number of now: two such voters would be a majority among those who went on.
	id.Bootstrap, id.Recovery, id.Unfinished = nil, recovery, true
	if err := writeIdentity(vfs.Default, dir, id); err != nil {
		return "", err
	}
	if err := setAside(dir, kept, logFile, snapshotDir); err != nil {
		return "", err
	}
	id.Unfinished = false
	return kept, writeIdentity(vfs.Default, dir, id)
}

// setAside moves files of a stopped node's catalog into a directory. What is there already stays: it is from an attempt before.
func setAside(dir, kept string, names ...string) error {
	if err := os.MkdirAll(kept, 0o750); err != nil {
		return storage.E("make", storage.KindIO, kept, err)
	}
	for _, name := range names {
		from, to := filepath.Join(dir, name), filepath.Join(kept, name)
		for n := 2; ; n++ {
			if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
				break
			}
			to = filepath.Join(kept, fmt.Sprintf("%s.%d", name, n))
		}
		if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return storage.E("set aside", storage.KindIO, from, err)
		}
	}
	return errors.Join(durable.SyncDir(kept), durable.SyncDir(dir))
}

// Lost returns whether the voters that are not lost are no majority.
func (c *Copy) Lost(lost []storage.NodeID) bool {
	left := slices.DeleteFunc(slices.Clone(c.Voters), func(id storage.NodeID) bool { return slices.Contains(lost, id) })
	return len(left) < len(c.Voters)/2+1
}

// ReadCopyFrom reads a copy of the catalog that was made by a backup, and refuses one of another cluster: KindConflict.
func ReadCopyFrom(r io.Reader, cluster storage.ClusterID) (*catalog.State, error) {
	state, err := catalog.Restore(r)
	if err != nil {
		return nil, err
	}
	if id := state.Cluster().ID; id != cluster {
		return nil, storage.E("recover", storage.KindConflict, "catalog", fmt.Errorf("the copy is of cluster %v, the node belongs to %v", id, cluster))
	}
	return state, nil
}

// MarkRecovery writes down that the directory of a stopped node is being changed by a recovery. No node runs on it until Begin or Follow has
// ended.
func MarkRecovery(dir string, recovery uint32) error {
	id, err := LoadIdentity(vfs.Default, dir)
	if err != nil {
		return err
	}
	id.Bootstrap, id.Recovery, id.Unfinished = nil, recovery, true
	return writeIdentity(vfs.Default, dir, id)
}
