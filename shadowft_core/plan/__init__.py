"""What a training will need, before anything is loaded: memory, steps, tokens, time, money and disk.

shape.py reads the model's shape. memory.py has the peak of one device. work.py counts tokens and operations. devices.py
has public facts of devices and the free memory of this machine.
"""
