package main

import (
	"bufio"
	"os/exec"
	"strings"
	"sync/atomic"
)

// monitor counts the lines of a command that goes on and on.
type monitor struct {
	command *exec.Cmd
	lines   atomic.Int64
}

// startMonitor counts the lines that hold the words.
func startMonitor(command *exec.Cmd, words string) (*monitor, error) {
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	m := &monitor{command: command}
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			if strings.Contains(scanner.Text(), words) {
				m.lines.Add(1)
			}
		}
	}()
	return m, nil
}

func (m *monitor) count() int { return int(m.lines.Load()) }

// stop ends the command, which knows no other end than being killed.
func (m *monitor) stop() {
	_ = m.command.Cancel()
	_ = m.command.Wait()
}
