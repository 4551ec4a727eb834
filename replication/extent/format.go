package extent

import (
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/replication/extent/storedir"
)

// RaiseFormat lets the store write what is new in format n, for ever; it does nothing if the store has that format, or a later
// one. Before, what it writes is read by builds that do not know the format, and so is what it sends to other nodes. So all
// nodes must know it, and nobody may want to go back to an earlier build.
//
// The error is of KindUnsupported if this build does not know the format. After one of KindNoSpace it may be called again.
func (s *Store) RaiseFormat(n int) error {
	fail := func(kind storage.Kind, err error) error {
		return storage.E("raise format of", kind, "store "+s.cfg.Dir, err)
	}
	s.making.Lock() // held across the sync: the file is written by one at a time
	defer s.making.Unlock()
	if int64(n) <= s.format.Load() {
		return nil
	}
	if n > storedir.NewestFormat {
		return fail(storage.KindUnsupported, fmt.Errorf("format %d; this build knows up to %d", n, storedir.NewestFormat))
	}
	if err := s.Failed(); err != nil {
		return fail(storage.KindIO, err)
	}
	id := s.identity
	id.Format = n
	// The identity says so before anything is written: an earlier build that is started on the directory refuses it as a whole, and
	// does not take its pages for damaged ones.
	if err := storedir.WriteIdentity(s.cfg.FS, s.cfg.Dir, id); diskio.NoSpace(err) {
		return fail(storage.KindNoSpace, err)
	} else if err != nil {
		s.fail(err)
		return fail(storage.KindIO, err)
	}
	s.format.Store(int64(n))
	if n >= storedir.AlignedRecords {
		s.log.Align()
	}
	s.logger.Info("the store's format was raised: earlier builds do not open it any more", "dir", s.cfg.Dir, "format", n)
	return nil
}

// byEpoch reports whether pages and counts are written by epoch, and so are the tables that other replicas pull. It stays so.
func (s *Store) byEpoch() bool { return s.format.Load() >= storedir.PagesByEpoch }
