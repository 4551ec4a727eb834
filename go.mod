module github.com/storaged/storaged

go 1.26
