package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
)

// ReadAt fills buf with the bytes at p: from memory if they lie within the data of one entry that is there, else
// from the disk. Bytes that are not durable can be read only as data of an entry. The caller checks what it got;
// ReadAt checks no sum. It returns when nothing writes into buf any more, so it knows no context: it lasts as long as
// the disk takes. KindNotFound if the segment is not there (any more), KindInvalid beyond the durable log, KindIO,
// KindUnavailable when the log is closed.
func (l *Log) ReadAt(p Position, buf []byte) error {
	l.mu.Lock()
	if r := l.recent.find(p); r != nil && p >= r.dataAt() {
		if off := uint64(p - r.dataAt()); off+uint64(len(buf)) <= uint64(len(r.data)) {
			l.mu.Unlock()
			copy(buf, r.data[off:])
			return nil
		}
	}
	return l.readDurableUnlock(p, buf)
}

// ReadStored is ReadAt of what the disk holds, whatever memory has: for those who ask whether the disk gives it back.
func (l *Log) ReadStored(p Position, buf []byte) error {
	l.mu.Lock()
	return l.readDurableUnlock(p, buf)
}

// ReadDisk is ReadStored of what the disk holds, whatever the kernel has: it is asked to forget the bytes before, and after.
func (l *Log) ReadDisk(p Position, buf []byte) error {
	at := int64(p.Offset()) &^ (pageBytes - 1)
	n := (int64(p.Offset())+int64(len(buf))+pageBytes-1)&^(pageBytes-1) - at
	l.dropCached(p.Segment(), at, n)
	defer l.dropCached(p.Segment(), at, n)
	return l.ReadStored(p, buf)
}

// readDurableUnlock reads bytes from the disk if they are durable. It is called with mu held and gives it up.
func (l *Log) readDurableUnlock(p Position, buf []byte) error {
	if p+Position(len(buf)) > l.Durable() && p.Segment() >= l.Durable().Segment() {
		l.mu.Unlock()
		return storage.E("read log", storage.KindInvalid, p.String(), errors.New("beyond what is durable"))
	}
	return l.readUnlock(p, buf)
}

// readUnlock reads durable bytes from the disk. It is called with mu held and gives it up.
func (l *Log) readUnlock(p Position, buf []byte) error {
	s := l.segments[p.Segment()]
	if s == nil {
		l.mu.Unlock()
		return storage.E("read log", storage.KindNotFound, p.String(), errors.New("no such segment"))
	}
	if l.closed {
		l.mu.Unlock()
		return storage.E("read log", storage.KindUnavailable, p.String(), errClosed)
	}
	f := l.beginReadLocked(s)
	l.mu.Unlock()
	err := error(nil)
	if f == nil {
		err = l.disk.Wait(func() (err error) {
			f, err = l.openForReading(s)
			return err
		})
	}
	if err == nil {
		_, err = l.disk.ReadAt(f, buf, int64(p.Offset()))
	}
	l.endRead(s)
	if err != nil {
		return storage.E("read log", storage.KindIO, p.String(), err)
	}
	return nil
}

// beginReadLocked keeps a segment from being recycled and its file from being closed until endRead. The file is nil if it is not open.
func (l *Log) beginReadLocked(s *segmentFile) vfs.File {
	s.reads++
	l.reading++
	return s.file
}

func (l *Log) endRead(s *segmentFile) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.reads--
	l.reading--
	if l.closed && l.reading == 0 {
		l.unread.Signal()
	}
}

// dropCached has the kernel forget what it holds in memory of n bytes of a sealed segment from at on; 0: of all to its end.
func (l *Log) dropCached(no SegmentNo, at, n int64) {
	l.mu.Lock()
	s := l.segments[no]
	if s == nil || s.state != SegmentSealed || l.closed {
		l.mu.Unlock()
		return
	}
	f := l.beginReadLocked(s)
	l.mu.Unlock()
	defer l.endRead(s)
	if f == nil { // the kernel remembers files that are closed, too
		err := l.disk.Wait(func() (err error) {
			f, err = l.openForReading(s)
			return err
		})
		if err != nil {
			return // whoever reads it hears why
		}
	}
	diskio.DropCached(f, at, n)
}

// openForReading opens the file of a sealed segment, whose reads is not zero, and closes another one if too many
// are open.
func (l *Log) openForReading(s *segmentFile) (vfs.File, error) {
	f, err := l.cfg.FS.OpenReadWrite(l.path(segmentName(s.no)), writeCategory)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	var toClose []vfs.File
	if s.file == nil {
		s.file = f
		toClose = l.noteOpenLocked(s)
	} else {
		toClose = []vfs.File{f}
		f = s.file
	}
	l.mu.Unlock()
	l.closeFiles(toClose)
	return f, nil
}

// closeFiles closes files of sealed segments. Everything in them is synced, so an error loses nothing.
func (l *Log) closeFiles(files []vfs.File) {
	for _, f := range files {
		if err := f.Close(); err != nil {
			l.log.Warn("close segment", "dir", l.cfg.Dir, "error", err)
		}
	}
}

// noteOpenLocked counts an open file of a sealed segment, and returns the files to be closed for it.
func (l *Log) noteOpenLocked(s *segmentFile) (toClose []vfs.File) {
	l.openLRU = append(l.openLRU, s)
	for i := 0; i < len(l.openLRU) && len(l.openLRU) > l.cfg.MaxOpenFiles; {
		old := l.openLRU[i]
		if old.file != nil && (old == s || old.reads > 0 || old.state != SegmentSealed) {
			i++
			continue
		}
		if old.file != nil {
			toClose = append(toClose, old.file)
			old.file = nil
		}
		l.openLRU = slices.Delete(l.openLRU, i, i+1)
	}
	return toClose
}

// readEntry reads an entry from the disk and checks it. It is called with mu held and gives it up.
func (l *Log) readEntryUnlock(index uint64, e entry) (Entry, error) {
	h := recordHeader{kind: kindEntry, payload: prefixBytes + e.extBytes + e.dataBytes, padding: e.padding}
	body := make([]byte, h.bodyBytes())
	if err := l.readUnlock(e.at+recordHeaderBytes, body); err != nil {
		return Entry{}, err
	}
	front, data, ok := h.parts(body)
	if !ok || crc32.Update(checksum(front), castagnoli, data) != e.sum || len(front) != prefixBytes+int(e.extBytes) {
		return Entry{}, storage.E("read log", storage.KindCorrupt, e.at.String(),
			fmt.Errorf("entry %d of the log fails its checksum", index))
	}
	prefix, _ := decodeEntryPrefix(front)
	ext := front[prefixBytes:]
	if len(ext) == 0 {
		ext = nil
	}
	return Entry{Index: index, Term: e.term, Type: prefix.kind, AppendedAt: prefix.appendedAt,
		Extensions: ext, Data: data}, nil
}
