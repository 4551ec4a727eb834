// Command journal is the application in the lab's containers. It appends records to a file, syncs each, and says how many it
// has synced and how long the longest took; and it checks afterwards what is in the file. It is linked statically: its
// container holds nothing else. One process at a time appends to a file.
//
//	journal append WRITER FILE STATUS    until SIGTERM; goes on after the last whole record
//	journal check FILE                   prints who wrote how many records, in the order of the file
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "journal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "append" && len(args[1]) == 1:
		return appendAll(ctx, args[1][0], args[2], args[3])
	case len(args) == 2 && args[0] == "check":
		return check(args[1], os.Stdout)
	}
	return errors.New("usage: journal append WRITER FILE STATUS | journal check FILE, where WRITER is one letter")
}

const recordBytes = 4096

// record returns record n of a file, as a writer writes it: who, which, and bytes that follow from both.
func record(writer byte, n uint64) []byte {
	head := binary.BigEndian.AppendUint64([]byte{writer}, n)
	sum := sha256.Sum256(head)
	return append(head, bytes.Repeat(sum[:], recordBytes/len(sum))...)[:recordBytes]
}

// recorded returns the writer of record n, and whether p is that record.
func recorded(p []byte, n uint64) (writer byte, ok bool) {
	return p[0], bytes.Equal(p, record(p[0], n))
}

// wholeRecords returns how many whole records a file begins with.
func wholeRecords(file *os.File) (n uint64, err error) {
	p := make([]byte, recordBytes)
	for ; ; n++ {
		_, err := file.ReadAt(p, int64(n)*recordBytes)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		if _, ok := recorded(p, n); !ok {
			return n, nil
		}
	}
}

// appendAll appends and syncs until ctx ends or a write fails; the status says so.
func appendAll(ctx context.Context, writer byte, path, status string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // every record was synced
	n, err := wholeRecords(file)
	if err == nil {
		err = file.Truncate(int64(n) * recordBytes)
	}
	var longest time.Duration
	for last := time.Now(); ctx.Err() == nil && err == nil; {
		if _, err = file.WriteAt(record(writer, n), int64(n)*recordBytes); err == nil {
			err = file.Sync()
		}
		if err == nil {
			n++
		}
		now := time.Now()
		longest = max(longest, now.Sub(last))
		last = now
		if _, statErr := os.Stat(status); statErr != nil { // whoever removes the status begins a new measurement
			longest = 0
		}
		if err := report(status, n, longest, err); err != nil {
			return err
		}
	}
	return err
}

// report writes the status: how many records are synced, the longest pause in milliseconds, and the error that ended it.
func report(path string, synced uint64, longest time.Duration, failure error) error {
	text := "-"
	if failure != nil {
		text = failure.Error()
	}
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, "%d %d %s\n", synced, longest.Milliseconds(), text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// check prints a line "WRITER COUNT" for each run of records, and fails at the first that is none.
func check(path string, w io.Writer) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	count, last := 0, byte(0)
	for n := 0; (n+1)*recordBytes <= len(data); n++ {
		writer, ok := recorded(data[n*recordBytes:][:recordBytes], uint64(n))
		if !ok {
			return fmt.Errorf("record %d of %s is not as it was written", n, path)
		}
		if writer != last && count > 0 {
			fmt.Fprintf(w, "%c %d\n", last, count)
			count = 0
		}
		last = writer
		count++
	}
	if rest := len(data) % recordBytes; rest != 0 {
		return fmt.Errorf("%s ends within a record, after %d bytes of it", path, rest)
	}
	if count > 0 {
		fmt.Fprintf(w, "%c %d\n", last, count)
	}
	return nil
}
